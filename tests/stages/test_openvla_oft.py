"""OpenVLA-OFT through the stages, at toy size with random weights: demonstrations, RL with adapters, evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from wovr_cli.main import app

from tests.stages.conftest import CONFIG, TOY
from tests.stages.prepared import SIGNAL, prepare, ready, updates
from wovr.core.checkpoint import load_tensors, read_header
from wovr.core.config import load_config
from wovr.core.errors import UserError
from wovr.policy.files import load_policy
from wovr.policy.openvla_oft.model import OpenVLAOFT
from wovr.stages import pipeline
from wovr.stages.experiment import Experiment
from wovr.stages.policies import save_trained, trained_policy
from wovr.stages.rl import IMAGINATION
from wovr.stages.sft import POLICY

VIT = "{width: 16, depth: 2, heads: 2, mlp_width: 16}"
TINY = (
    f"policy={{kind: openvla_oft, action_dim: 3, image_size: 28, dino: {VIT}, siglip: {VIT}, "
    "llama: {width: 16, layers: 1, heads: 2, mlp_width: 16}}",
    "sft.target_sigma=0",
)
LORA = (*TINY, "policy.lora={rank: 4}", "policy.checkpointing=true")


def experiment(*overrides: str) -> Experiment:
    return load_config(Experiment, CONFIG, [*TOY, *SIGNAL, *overrides])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Before RL; adapters were fitted to demonstrations."""
    path = tmp_path_factory.mktemp("runs") / "prepared"
    prepare(path, *LORA)
    return path


def test_sft_trains_all_weights_or_adapters(prepared: Path, tmp_path: Path) -> None:
    adapters, metadata = load_tensors(prepared / "sft/adapters/adapter_model.safetensors")
    assert metadata["format"] == "pt" and all(".lora_" in name for name in adapters)
    assert any(value.abs().sum() > 0 for name, value in adapters.items() if "lora_B" in name), "trained"
    with pipeline.open_workplace(experiment(*TINY), tmp_path, plain=True) as place:
        pipeline.run_stage(place, "sft")
    assert not (tmp_path / "sft/adapters").exists()
    assert json.loads(read_header(tmp_path / POLICY)["config"])["kind"] == "openvla_oft"
    merged, whole = (load_policy(path / POLICY).state_dict() for path in (prepared, tmp_path))
    assert merged.keys() == whole.keys() and not all(torch.equal(merged[name], whole[name]) for name in whole)


def test_adapters_are_written_again_after_an_interruption(prepared: Path, tmp_path: Path) -> None:
    policy = trained_policy(experiment(*LORA), prepared / POLICY)
    for _ in range(2):
        save_trained(tmp_path / "policy.safetensors", policy)
    assert (tmp_path / "adapters/adapter_config.json").is_file() and not list(tmp_path.glob("*.tmp"))


def test_rl_evaluation_and_refinement(prepared: Path, tmp_path: Path) -> None:
    config = experiment(*LORA, "rl.collocated=true", "rl.updates=2")
    path = ready(prepared, tmp_path / "run", config)
    with pipeline.open_workplace(config, path, plain=True) as place:
        for name in ("rl", "refine", "eval", "report"):
            pipeline.run_stage(place, name)
    lines = updates(path)
    assert len(lines) == 2 and all(line["log_prob_gap"] < 1e-4 for line in lines)
    assert lines[0]["kl_base"] < 1e-9 < lines[1]["kl_base"]
    assert (path / "rl/adapters/adapter_config.json").is_file()
    assert (path / "refine/round_1/rl/adapters/adapter_config.json").is_file()
    assert set(json.loads((path / "report/summary.json").read_text())["success"]) == {"base", "imagination", "pace"}


def test_adapters_under_zero_3_in_two_processes(prepared: Path, tmp_path: Path) -> None:
    config = experiment(*LORA, "rl.updates=2")
    alone, two = (ready(prepared, tmp_path / name, config) for name in ("alone", "two"))
    with pipeline.open_workplace(config, alone, plain=True) as place:
        pipeline.run_command(place, "rl")
    command = [sys.executable, "-m", "wovr_cli", "rl", CONFIG, *TOY, *SIGNAL, *LORA, "rl.updates=2", "--run", two]
    done = subprocess.run(
        [*map(str, command), "--nproc", "2", "--zero", "3"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for line, reference in zip(updates(two), updates(alone), strict=True):
        assert line == pytest.approx(reference, rel=1e-4, abs=1e-5)
    ours, theirs = load_tensors(alone / IMAGINATION)[0], load_tensors(two / IMAGINATION)[0]
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-4)


def test_the_newest_policy_is_exported_as_others_read_it(prepared: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(prepared), str(tmp_path / "out"), "--what", "policy"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    wrong = CliRunner().invoke(app, ["export", str(prepared), str(tmp_path / "out"), "--what", "polcy"])
    assert wrong.exit_code == 2


def test_published_weights_serve_as_they_are(prepared: Path, tmp_path: Path) -> None:
    """`sft.train=null`: no demonstrations, no training."""
    from wovr.policy.openvla_oft.published import save_published

    policy = load_policy(prepared / POLICY)
    assert isinstance(policy, OpenVLAOFT)
    save_published(tmp_path / "published", policy, dtype=torch.float32)
    as_it_is = (*LORA, f"policy.pretrained={tmp_path / 'published'}", "sft.train=null")
    key = next(iter(json.loads(policy.assets.files["dataset_statistics.json"])))
    config = experiment(*as_it_is, f"policy.statistics={key}")
    with pipeline.open_workplace(config, tmp_path / "run", plain=True) as place:
        pipeline.run_stage(place, "sft")
        assert not place.run.ledger()
    ours, theirs = load_tensors(tmp_path / "run" / POLICY)[0], policy.state_dict()
    assert all(torch.equal(value, theirs[name].bfloat16()) for name, value in ours.items())

    with (
        pytest.raises(UserError, match=r"expected the key 'libero_spatial_no_noops' of `policy\.statistics`, found"),
        pipeline.open_workplace(
            experiment(*as_it_is, "policy.statistics=libero_spatial_no_noops"), tmp_path / "other", plain=True
        ),
    ):
        pass
    assert not (tmp_path / "other").exists(), "nothing is written before that"


def test_actions_must_fit_the_world_model(tmp_path: Path) -> None:
    seven = [one.replace("action_dim: 3", "action_dim: 7") for one in TINY]
    with (
        pytest.raises(UserError, match=r"key 'world_model\.dit\.action_dim': expected 7 as the policy has, found 3"),
        pipeline.open_workplace(experiment(*seven), tmp_path / "run", plain=True),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_no_policy_without_weights_or_training() -> None:
    with pytest.raises(UserError, match=r"sft\.train: expected train settings, or policy\.pretrained"):
        experiment(*TINY, "sft.train=null")
