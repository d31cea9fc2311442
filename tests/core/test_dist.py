import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import start
from wovr.core.dist import Dist, precision

SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from wovr.core.dist import Dist
from wovr.core.log import RunLog
from wovr.core.seed import normal
from wovr.core.train import TrainConfig, fit

folder = Path(sys.argv[1])
dist = Dist()
torch.manual_seed(dist.rank)  # rank 0's weights must win
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

def batch_at(step):
    return {"x": normal((7, 4), 0, "x", step)}

def loss_fn(model, batch):
    error = model(batch["x"]) - batch["x"][:, :2]
    return error.square().sum(1), {"error": error.abs().sum(1)}

config = TrainConfig(steps=6, lr=1e-2, precision="fp32", ema_decay=0.5, log_every=2, checkpoint_every=3, accumulate=2)
log = RunLog(folder, plain=True, active=dist.is_main)
result = fit(model, loss_fn, batch_at, config, dist=dist, folder=folder, log=log, name="toy")
assert dist.sum(torch.tensor(1.0)).item() == dist.world_size
torch.save({"weights": result.model.state_dict(), "history": result.history}, folder / f"rank_{dist.rank}.pt")
dist.close()
"""


def launch(folder: Path, world_size: int) -> list[dict]:
    """Run the script as `torchrun` would; what each rank learned."""
    for rank, process in enumerate(start(SCRIPT, folder, world_size)):
        assert process.wait(timeout=120) == 0, (folder / f"rank_{rank}.log").read_text()
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(world_size)]


def test_two_ranks_take_the_steps_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "one")])
    exec(SCRIPT, {})
    one = torch.load(tmp_path / "one" / "rank_0.pt", weights_only=True)
    two = launch(tmp_path / "two", 2)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two[0]["weights"][name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(two[1]["weights"][name], two[0]["weights"][name], rtol=0, atol=0)
    assert [line["step"] for line in two[1]["history"]] == [2, 4, 6]
    for line, reference in zip(two[1]["history"], one["history"], strict=True):
        assert line == pytest.approx(reference, rel=1e-5)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 3  # rank 0 alone


def test_gradients_travel_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def all_reduce(tensor: torch.Tensor) -> None:
        sent.append(tensor.numel())
        tensor.mul_(2)  # another rank has the same

    monkeypatch.setattr("wovr.core.dist.BUCKET", 10)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    dist = Dist()
    monkeypatch.setattr(dist, "_accelerator", object())
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (5,), (20,), (1,))]
    for number, parameter in enumerate(parameters[:3]):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    dist.sum_gradients(parameters)
    assert sent == [11, 20, 1]
    assert [parameter.grad.unique().tolist() for parameter in parameters] == [[2.0], [4.0], [6.0], [0.0]]
    monkeypatch.setattr(dist, "_accelerator", None)


def test_one_process_is_rank_zero_of_one_and_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it fails
    dist = Dist()
    assert (dist.rank, dist.world_size, dist.is_main) == (0, 1, True)
    assert dist.sum(torch.tensor(3.0)).item() == 3.0


def test_autocast_obeys_the_request() -> None:
    x = torch.randn(4, 4, device=Dist().device)
    with Dist().autocast("bf16"):
        assert (x @ x).dtype == torch.bfloat16
    with Dist().autocast("fp32"):
        assert (x @ x).dtype == torch.float32
    assert precision("bf16") == "bf16" and precision("auto") in ("bf16", "fp32")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "fp32"), ({"avx512_bf16": True, "amx_bf16": True}, "bf16"), ({}, "fp32")],
)
def test_auto_follows_the_hardware(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.__wrapped__("auto") == expected
