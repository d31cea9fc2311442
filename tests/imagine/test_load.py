import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

from tests.imagine.worlds import A, H, make_start
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.checkpoint import save_model
from wovr.core.errors import UserError
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.flow.schedule import FlowConfig
from wovr.imagine.load import BANK, DIT, REWARD, WORLD_CODEC, load_dit, load_world_model, newest, save_dit
from wovr.kir.bank import KeyframeBank
from wovr.reward.classifier import RewardClassifier, RewardClassifierConfig


def write_codec(path, channels=4):
    config = ConvCodecConfig(channels=channels, frame_width=4, group_width=16, blocks=1)
    save_model(path, ConvCodec(config), config)


def write_dit(path, channels=4, context=None, steps=2):
    context = context or ContextConfig()
    config = DiTConfig(width=24, depth=1, heads=2, ffn_width=24, channels=channels, action_dim=A)
    dit = ActionDiT(config, layout(context, H))
    save_dit(path, dit, context, FlowConfig(steps=steps))
    return dit


def write_run(run):
    write_codec(run / WORLD_CODEC)
    write_dit(run / DIT)
    config = RewardClassifierConfig(channels=8, keypoints=4, text_width=8, hidden_width=16, threshold=0.7, hold=2)
    save_model(run / REWARD, RewardClassifier(config), config)
    KeyframeBank([make_start(0), make_start(1, first=True)]).save(run / BANK)


def test_make_vec_from_a_run_folder(tmp_path):
    write_run(tmp_path)
    env = gymnasium.make_vec("wovr/Imagined-v0", run=str(tmp_path), num_envs=2)
    assert env.num_envs == 2 and env.world.horizon == 48 and env.spec.id == "wovr/Imagined-v0"
    assert (env.world.threshold, env.world.hold) == (0.7, 2)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    observation, rewards, *_ = env.step(env.action_space.sample())
    assert observation in env.observation_space and np.isfinite(rewards).all()
    longer = gymnasium.make_vec("wovr/Imagined-v0", run=str(tmp_path), num_envs=1, max_episode_steps=512)
    assert longer.world.horizon == 512


def test_a_network_comes_back_with_its_context_and_flow(tmp_path):
    context = ContextConfig(memory_frames=8, reference=False)
    saved = write_dit(tmp_path / "dit.safetensors", context=context, steps=3)
    dit, loaded_context, flow = load_dit(tmp_path / "dit.safetensors")
    assert loaded_context == context and flow.steps == 3 and dit.layout == saved.layout
    for name, value in saved.state_dict().items():
        assert torch.equal(dit.state_dict()[name], value), name


def test_the_newest_refinement_serves(tmp_path):
    for folder in (tmp_path, tmp_path / "refine/round_2", tmp_path / "refine/round_10"):
        write_dit(folder / DIT)
    write_codec(tmp_path / WORLD_CODEC)
    assert newest(tmp_path, DIT) == tmp_path / "refine/round_10" / DIT
    assert newest(tmp_path, WORLD_CODEC) == tmp_path / WORLD_CODEC, "not refined, so the run's own"


@pytest.mark.parametrize(
    ("missing", "command"), [(DIT, "train-wm"), (WORLD_CODEC, "train-wm"), (REWARD, "run"), (BANK, "run")]
)
def test_a_stage_that_has_not_run_is_named(tmp_path, missing, command):
    write_run(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=rf"{missing}: expected .* found none; run `wovr {command} CONFIG` first"):
        gymnasium.make_vec("wovr/Imagined-v0", run=str(tmp_path))


def test_files_that_do_not_fit_are_named(tmp_path):
    codec, dit = tmp_path / "codec.safetensors", tmp_path / "dit.safetensors"
    write_codec(codec, channels=6)
    write_dit(dit)
    with pytest.raises(UserError, match=r"dit\.safetensors: expected 6 latent channels as in .*, found 4"):
        load_world_model(codec, dit)
    with pytest.raises(UserError, match=r"codec\.safetensors: expected a network .* no 'context' in its header"):
        load_dit(codec)


def test_importing_imagination_makes_it_known_and_does_not_import_torch():
    code = "import sys, wovr.imagine, gymnasium; assert 'torch' not in sys.modules; gymnasium.spec('wovr/Imagined-v0')"
    subprocess.run([sys.executable, "-c", code], check=True)
