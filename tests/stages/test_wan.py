"""Training on the latents of Wan's VAE, and the whole loop with it at toy size."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codec.wans import TINY, make_codec, make_vae, original
from tests.stages.test_hallucination import make_episode
from wovr.codec.wan import WanCodec
from wovr.core.checkpoint import load_tensors
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.types import Frames
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.episodes.windows import WindowConfig
from wovr.flow.schedule import FlowConfig
from wovr.imagine import load
from wovr.imagine.load import StoredCodec, save_codec
from wovr.imagine.world_model import WorldModel
from wovr.kir.mine import first_frame_start
from wovr.stages import latent_cache, pipeline
from wovr.stages.latents import LatentEpisodes, WorldBatches

BF16 = {"rtol": 2**-8, "atol": 1e-5}
"""What storing in bf16 costs."""


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> WanCodec:
    return make_codec(tmp_path_factory.mktemp("vae"))[0]


@pytest.fixture
def stored(codec: WanCodec, tmp_path: Path) -> StoredCodec:
    save_codec(tmp_path / "codec.safetensors", codec)
    found = StoredCodec(tmp_path / "codec.safetensors")
    vars(found)["codec"] = codec  # in fp32, whatever this machine computes in
    return found


def encode(codec: WanCodec, frames_THWC: Frames) -> Tensor:
    return codec.encode(torch.from_numpy(frames_THWC)[None])[0]


@pytest.mark.parametrize(
    "context",
    [ContextConfig(), ContextConfig(reference=False), ContextConfig(memory_frames=8), ContextConfig(memory_frames=1)],
)
def test_windows_are_cut_from_one_stream_per_episode(
    codec: WanCodec, stored: StoredCodec, tmp_path: Path, context: ContextConfig
) -> None:
    """Of each latent of a window: the group of the stream that ends at its last frame e or, where e <= 0, as many
    groups after the reference as it stands there, of a stream that does not move."""
    episodes = [make_episode(0, 17), make_episode(1, 26)]
    data = LatentEpisodes(episodes, stored, RunLog(tmp_path, plain=True), context, 8)
    window = layout(context, 8)
    memory = 1 if context.memory_frames == 1 else context.memory_frames // 4
    for number, t in [(0, 0), (1, 0), (0, 8), (1, 4), (1, 16), (1, -8)]:
        frames = episodes[number].frames_THWC
        stream = encode(codec, frames[: 1 + (len(frames) - 1) // 4 * 4])
        still = encode(codec, np.repeat(frames[:1], 1 + 4 * (memory + 2), axis=0))
        expected = [stream[0]] if context.reference else []
        for place in range(1, memory + 3):
            end = t + 4 * (place - memory)
            if context.memory_frames == 1 and place == 1:
                expected.append(encode(codec, frames[max(t, 0), None])[0])
            else:
                expected.append(stream[end // 4] if end > 0 else still[place])
        latents, actions = data.windows(np.array([number]), np.array([t]))
        torch.testing.assert_close(latents[0], torch.stack(expected), **BF16)
        assert actions.shape[1] == window.actions
    batches = WorldBatches(data, WindowConfig(), window, batch_size=4, copies=1, seed=0)
    assert set(zip(batches.index.episode_W.tolist(), batches.index.t_W.tolist(), strict=True)) == {
        *((0, t) for t in (0, 4, 8)),
        *((1, t) for t in (0, 4, 8, 12, 16)),
    }
    assert batches.at(0)["latents_BLChw"].shape == (4, window.frames, 3, 1, 1)


def test_training_shows_a_first_frame_as_a_rollout_does(codec: WanCodec, stored: StoredCodec, tmp_path: Path) -> None:
    episode, context = make_episode(0, 8), ContextConfig()
    dit = ActionDiT(DiTConfig(width=24, depth=1, heads=2, ffn_width=24, channels=3, action_dim=3), layout(context, 8))
    state = WorldModel(codec, dit, context, FlowConfig()).start([first_frame_start(episode, "demo", 4)])
    data = LatentEpisodes([episode], stored, RunLog(tmp_path, plain=True), context, 8)
    latents, actions = data.windows(np.array([0]), np.array([0]))
    torch.testing.assert_close(latents[:, :2], torch.cat([state.reference_BLChw, state.memory_BLChw], dim=1), **BF16)
    assert torch.equal(actions[:, 1:5], state.memory_actions_BMA)


def test_latents_are_encoded_once_and_then_the_codec_is_not_needed(
    stored: StoredCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, folder, context = RunLog(tmp_path, plain=True), tmp_path / "latents", ContextConfig()
    episodes = [make_episode(number, 16) for number in range(3)]
    count = 0
    original_encode = latent_cache._episode

    def interrupted(*args: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return original_encode(*args)

    monkeypatch.setattr(latent_cache, "_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LatentEpisodes(episodes, stored, log, context, 8, folder=folder)

    def raced(*args: Any) -> Tensor:
        """Another process encodes all that is missing while this one encodes its first."""
        monkeypatch.setattr(latent_cache, "_episode", original_encode)
        LatentEpisodes(episodes, stored, log, context, 8, folder=folder)
        nonlocal count
        count += 1
        return original_encode(*args)

    monkeypatch.setattr(latent_cache, "_episode", raced)
    first = LatentEpisodes(episodes, stored, log, context, 8, folder=folder)
    assert count == 3, "what was encoded before the interruption is kept"
    assert len(list(folder.rglob("*.safetensors"))) == 3 and not list(folder.rglob("*.tmp"))

    monkeypatch.setattr(load, "load_codec", None)
    again = LatentEpisodes(episodes, StoredCodec(stored.path), log, context, 8, folder=folder)
    assert torch.equal(again.latents_NChw, first.latents_NChw)
    assert WorldBatches(again, WindowConfig(), layout(context, 8), batch_size=2, copies=1, seed=0).at(0)


def test_a_latent_frame_of_the_published_size_takes_24_6_kilobytes(tmp_path: Path) -> None:
    full = {"channels": 48, "latents_mean": (0.0,) * 48, "latents_std": (1.0,) * 48}
    save_codec(tmp_path / "codec.safetensors", make_codec(tmp_path / "vae", TINY.model_copy(update=full))[0])
    episode = make_episode(0, 8)
    frames = np.kron(episode.frames_THWC, np.ones((1, 16, 16, 1), dtype=np.uint8))
    assert frames.shape[1:] == (256, 256, 3)
    cache = latent_cache.LatentCache(StoredCodec(tmp_path / "codec.safetensors"), tmp_path / "latents")
    assert cache.episode(replace(episode, frames_THWC=frames), 3).shape == (1 + 3 + 2, 48, 16, 16)
    (path,) = (tmp_path / "latents").glob("*/*.safetensors")
    assert 0 <= path.stat().st_size - 6 * 24_576 < 300


WAN = json.dumps(TINY.model_dump(mode="json"))
LOOP = (
    f"codec.wan={WAN}",
    "codec.train=null",
    "decoder.train=null",
    "simulator.horizon=16",
    "world_model.own_memory.train={steps: 1, batch_size: 4}",
    "sft.demonstrations=1",
    "collect.episodes=6",
    "collect.held_out=0.3",
    "world_model.dit={width: 32, depth: 1, heads: 2, ffn_width: 64, channels: 3}",
    "rl.updates=1",
    "refine.episodes=2",
)


def test_the_loop_runs_on_wans_codec(toy: Any, tmp_path: Path) -> None:
    vae = make_vae()
    torch.save(original(vae), tmp_path / "Wan2.2_VAE.pth")
    run = tmp_path / "run"
    with pipeline.open_workplace(
        toy(f"codec.pretrained={tmp_path / 'Wan2.2_VAE.pth'}", *LOOP), run, plain=True
    ) as place:
        for stage in ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes", "rl", "refine"):
            pipeline.run_stage(place, stage)
        summary = place.run.stages()
    assert np.isfinite(summary["codec"]["summary"]["psnr"])
    weights, header = load_tensors(run / "codec/codec.safetensors")
    assert header["codec"] == "wan"
    assert all(torch.equal(weights[name], value) for name, value in vae.state_dict().items())
    written = [run / name for name in ("codec", "world_model", "refine/round_1/world_model")]
    assert len({(folder / "codec.safetensors").stat().st_ino for folder in written}) == 1, "no second copy"
    assert (run / "rl/policy.safetensors").is_file()


def test_a_run_checks_the_file_before_anything_else(toy: Any, tmp_path: Path) -> None:
    make_vae().save_pretrained(tmp_path / "vae")
    wan = (f"codec.pretrained={tmp_path / 'vae'}", *LOOP)
    with (
        pytest.raises(UserError, match=r"config\.json: key 'z_dim': expected 48 as in `codec\.wan`, found 3"),
        pipeline.open_workplace(toy(*wan, "codec.wan={}"), tmp_path / "run", plain=True),
    ):
        pass
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"key 'decoder': .*expected train=null with `codec\.wan`"):
        toy(*wan, "decoder.train={steps: 1}")
    with pytest.raises(UserError, match=r"key 'codec': .*wan: expected pretrained weights and train=null"):
        toy(*wan, "codec.train={steps: 1}")
