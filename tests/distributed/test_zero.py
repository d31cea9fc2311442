"""Two processes over gloo under ZeRO 1, 2 and 3 take the steps of one, and go on after one of them was killed."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import start, wait
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.optim import OptimConfig
from wovr.core.train import FitResult, Trainer
from wovr.core.train_state import find_state

ZERO = Path(__file__).parents[2] / "configs" / "deepspeed"
KILLED_AT = 5
CHECKPOINTING = {1: "none", 2: "full", 3: "selective"}
"""Of the sharded networks; the one process keeps all activations."""
PROGRAM = """
import os, signal, sys
from pathlib import Path
from torch import nn
from wovr.core.dist import Dist
from wovr.core.log import RunLog
from wovr.core.seed import normal, seed_everything, stream
from wovr.core.train import TrainConfig, fit
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.flow.schedule import FlowConfig
from wovr.stages.latents import WorldLossConfig, world_loss
import torch

CONTEXT = ContextConfig()
WINDOW = layout(CONTEXT, 8)
CONFIG = TrainConfig(steps=8, batch_size=6, accumulate=2, lr=3e-3, warmup_steps=2, schedule="cosine", weight_decay=0.1,
                     grad_clip=0.5, ema_decay=0.8, precision="fp32", log_every=1, checkpoint_every=3)

def batch_at(step):
    shape = (6, WINDOW.frames, 3, 4, 4)
    rng = stream(0, "uniform", step)
    return {"latents_BLChw": normal(shape, 0, "latents", step),
            "actions_BTA": normal((6, WINDOW.actions, 3), 0, "actions", step),
            "noise_BFChw": normal(shape, 0, "noise", step),
            "uniform_BK": torch.from_numpy(rng.random((6, 1), dtype="float32")),
            "memory_uniform_B": torch.from_numpy(rng.random(6, dtype="float32"))}

def train(folder, dist, kill_at=None, checkpointing="none"):
    folder.mkdir(parents=True, exist_ok=True)
    def batches(step):
        if step == kill_at and dist.rank == dist.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch_at(step)
    seed_everything(0)
    network = ActionDiT(DiTConfig(width=12, depth=2, heads=2, ffn_width=20, channels=3), WINDOW)
    nn.init.normal_(network.head.head.weight, std=0.02)
    nn.init.normal_(network.patch_embedding.bias).requires_grad_(False)  # a frozen parameter
    loss = world_loss(CONTEXT, FlowConfig(), WINDOW, WorldLossConfig())
    log = RunLog(folder, plain=True, active=dist.is_main)
    network.checkpointing = checkpointing
    config = CONFIG.model_copy(update={"precision": "bf16"}) if "bf16" in sys.argv else CONFIG
    return fit(network, loss, batches, config, dist=dist, folder=folder, log=log, name="toy")
"""
WORKER = (
    PROGRAM
    + """
folder, zero, kill_at, checkpointing = Path(sys.argv[1]), *sys.argv[2:5]
dist = Dist(Path(zero), offload="offload" in sys.argv)
names = ["killed"] if kill_at != "never" else ["killed", "whole"]
for name in names:
    result = train(folder / name, dist, int(kill_at) if kill_at != "never" else None, checkpointing)
    if dist.is_main:
        torch.save({"weights": result.model.state_dict(), "history": result.history}, folder / f"{name}.pt")
dist.close()
"""
)
JUDGED = (
    PROGRAM
    + """
from wovr.core.train import Trainer
dist = Dist(Path(sys.argv[2]))
same = []
for average in (0.0, 0.8):
    seed_everything(0)
    network = ActionDiT(DiTConfig(width=12, depth=2, heads=2, ffn_width=20, channels=3), WINDOW)
    nn.init.normal_(network.head.head.weight, std=0.02)
    settings = CONFIG.model_copy(update={"precision": "bf16", "ema_decay": average})
    trainer = Trainer(network, settings, dist, 2)
    for step in range(2):
        trainer.step(batch_at(step), world_loss(CONTEXT, FlowConfig(), WINDOW, WorldLossConfig()))
    judged, result = trainer.judged().state_dict(), trainer.result().state_dict()
    same += [judged["head.head.weight"].data_ptr() == network.head.head.weight.data_ptr(),
             all(torch.equal(value.bfloat16(), judged[name].bfloat16()) for name, value in result.items())]
    trainer.close()
torch.save(same, Path(sys.argv[1]) / "same.pt")
dist.close()
"""
)
program: dict[str, Any] = {}
exec(PROGRAM, program)


def launch(
    folder: Path, zero: int, kill_at: int | str = "never", processes: int = 2, *extra: str, worker: str = WORKER
) -> list[int]:
    """Exit statuses of the processes."""
    settings = str(ZERO / f"zero{zero}.json")
    ranks = start(worker, folder, processes, settings, str(kill_at), CHECKPOINTING[zero], *extra)
    return wait(ranks)


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"{name}.pt", weights_only=True)
    return found


def same_history(a: list[dict[str, float]], b: list[dict[str, float]], tolerance: float) -> None:
    assert [line["step"] for line in a] == [line["step"] for line in b] == list(range(1, 9))
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """The same training in this process, without DeepSpeed."""
    result: FitResult = program["train"](tmp_path_factory.mktemp("one"), Dist())
    return result


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_under_zero(tmp_path: Path, one: FitResult, stage: int) -> None:
    statuses = launch(tmp_path, stage, kill_at=KILLED_AT)
    assert -signal.SIGKILL in statuses
    state = tmp_path / "killed" / "toy.state"
    assert [path.name for path in state.iterdir()] == ["step-3"]
    shutil.copytree(state, tmp_path / "alone" / "toy.state")

    assert launch(tmp_path, stage) == [0, 0], (tmp_path / "rank_0.log").read_text()[-3000:]
    whole, killed = read(tmp_path, "whole"), read(tmp_path, "killed")
    same_history(one.history, whole["history"], 1e-5)  # as one process
    same_weights(one.model.state_dict(), whole["weights"], 1e-5)
    assert killed["history"] == whole["history"]  # as if it had not been killed, to the last bit
    same_weights(whole["weights"], killed["weights"], 0.0)

    alone = program["train"](tmp_path / "alone", Dist())  # two processes' state goes on in one, without DeepSpeed
    same_history(one.history, alone.history, 1e-5)
    same_weights(one.model.state_dict(), alone.model.state_dict(), 1e-5)


def test_one_process_with_its_moments_in_cpu_memory_continues_a_plain_one(
    tmp_path: Path, one: FitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    monkeypatch.setitem(program, "os", type("os", (), {"kill": stop, "getpid": os.getpid}))
    with pytest.raises(StopError):
        program["train"](tmp_path / "killed", Dist(), KILLED_AT)
    assert launch(tmp_path, 2, "never", 1, "offload") == [0], (tmp_path / "rank_0.log").read_text()[-3000:]
    killed = read(tmp_path, "killed")
    same_history(one.history, killed["history"], 1e-5)
    same_weights(one.model.state_dict(), killed["weights"], 1e-5)


def test_validation_takes_bf16_weights_as_they_are(tmp_path: Path) -> None:
    assert launch(tmp_path, 2, "never", 1, worker=JUDGED) == [0], (tmp_path / "rank_0.log").read_text()[-3000:]
    assert torch.load(tmp_path / "same.pt", weights_only=True) == [True, True, False, True], "not beside an average"


def test_bf16_weights_have_exact_masters(tmp_path: Path, one: FitResult) -> None:
    """What is not trained comes back as it was given, and the average is that of the fp32 masters."""
    assert launch(tmp_path, 1, "never", 1, "bf16") == [0], (tmp_path / "rank_0.log").read_text()[-3000:]
    whole, expected = read(tmp_path, "whole"), one.model.state_dict()
    frozen = "patch_embedding.bias"
    assert torch.equal(whole["weights"][frozen], expected[frozen])
    for name, value in whole["weights"].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0.02)
    trained = torch.cat([value.flatten() for name, value in whole["weights"].items() if name != frozen])
    assert (trained != trained.bfloat16()).float().mean() > 0.5, "rounded like the weights"
    for line, exact in zip(whole["history"], one.history, strict=True):
        assert line["loss"] == pytest.approx(exact["loss"], rel=0.02)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    result = program["train"](tmp_path, Dist())
    (part,) = result.state.rglob("part-*")
    part.unlink()
    with pytest.raises(UserError, match=r"step-8: expected 1 or more parts of a training state, found 0"):
        find_state(result.state)


def test_muon_is_whole_on_every_rank_under_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(zero: dict[str, Any] | None) -> torch.Tensor:
        dist = Dist()
        monkeypatch.setattr(dist, "zero", zero)
        torch.manual_seed(0)
        trainer = Trainer(torch.nn.Linear(2, 2), OptimConfig(muon_lr=0.1, precision="fp32"), dist, 1)
        trainer.step({"x": torch.ones(1, 2)}, lambda model, batch: (model(batch["x"]).sum(1), {}))
        return trainer.result().weight

    assert torch.equal(trained({"zero_optimization": {"stage": 2}}), trained(None))


def test_settings_without_a_stage_are_refused(tmp_path: Path) -> None:
    settings = tmp_path / "zero.json"
    settings.write_text('{"zero_optimization": {"stage": 0}}')
    with pytest.raises(UserError, match=r"zero\.json: key 'zero_optimization\.stage': expected 1, 2 or 3"):
        Dist(settings)
