import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.optim import OptimConfig
from wovr.core.seed import normal
from wovr.core.train import FitResult, TrainConfig, Trainer, fit, split
from wovr.core.train_state import find_state
from wovr.core.weights import Batch

EXACT = {"rtol": 0.0, "atol": 0.0}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.GELU(), nn.Linear(16, 3))


def batch_at(step: int) -> Batch:
    x_BD = normal((8, 6), 0, "toy", step)
    return {"x": x_BD, "y": x_BD[:, :3].sin(), "text": [f"sample {i}" for i in range(8)]}


def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    assert len(batch["text"]) == len(batch["x"])
    error_BD = model(batch["x"]).float() - batch["y"]
    return error_BD.square().mean(1), {"worst": error_BD.abs().amax(1)}


def same_weights(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, **tolerance)


def config(**changes: Any) -> TrainConfig:
    defaults = {"steps": 12, "lr": 1e-2, "precision": "fp32", "log_every": 5, "checkpoint_every": 4}
    return TrainConfig(**{**defaults, **changes})


def run(folder: Path, train: TrainConfig, batches: Any = batch_at, **options: Any) -> FitResult:
    log = RunLog(folder, plain=True)
    return fit(net(), loss_fn, batches, train, dist=Dist(), folder=folder, log=log, name="toy", **options)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_micro_batches_change_nothing(parts: int) -> None:
    models = [net().eval() for _ in range(2)]
    trainers = [Trainer(model, OptimConfig(lr=1e-2, precision="fp32"), Dist(), 10) for model in models]
    for step in range(10):
        whole, accumulated = (t.step(batch_at(step), loss_fn, n) for t, n in zip(trainers, (1, parts), strict=True))
        assert whole == pytest.approx(accumulated, rel=1e-5)
    same_weights(models[0], models[1], rtol=0, atol=1e-6)


def test_a_step_is_adamw_on_the_batch_mean() -> None:
    model = net().eval()
    reference = copy.deepcopy(model).double()
    vectors = [p for p in reference.parameters() if p.ndim < 2]
    matrices = [p for p in reference.parameters() if p.ndim >= 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.5)
    trainer = Trainer(model, OptimConfig(lr=1e-2, weight_decay=0.5, grad_clip=0.3, precision="fp32"), Dist(), 5)
    for step in range(5):
        values = trainer.step(batch_at(step), loss_fn)
        batch = batch_at(step)
        loss = (reference(batch["x"].double()) - batch["y"].double()).square().mean()
        adamw.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
        for parameter in reference.parameters():
            parameter.grad *= min(1.0, 0.3 / norm.item())
        adamw.step()
        assert values["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert values["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    same_weights(reference.float(), model, rtol=0, atol=2e-6)


def test_the_average_follows_its_equation() -> None:
    decay = 0.6
    model = net()
    trainer = Trainer(model, OptimConfig(lr=1e-2, ema_decay=decay, precision="fp32"), Dist(), 20)
    average = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(20):
        trainer.step(batch_at(step), loss_fn)
        rate = min(decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average[name] = rate * average[name] + (1 - rate) * value.double()
    averaged = trainer.result()
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(value.double(), average[name], rtol=0, atol=1e-6)
    assert not averaged.training and not any(parameter.requires_grad for parameter in averaged.parameters())


def test_frozen_parameters_stay() -> None:
    model = net()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    Trainer(model, OptimConfig(lr=1e-2), Dist(), 1).step(batch_at(0), loss_fn)
    same_weights(before[0], model[0], **EXACT)
    assert not torch.equal(before[4].weight, model[4].weight)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    def poisoned(step: int) -> Batch:
        batch = dict(batch_at(step))
        return {**batch, "y": batch["y"] * math.nan} if step == 6 else batch

    with pytest.raises(UserError, match=r"training step 6: expected a finite loss .* found loss nan"):
        run(tmp_path, config(), poisoned)
    resumed = run(tmp_path, config())  # from the state after step 4
    same_weights(run(tmp_path / "other", config()).model, resumed.model, **EXACT)


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [3, 4, 6, 9])
@pytest.mark.parametrize(("decay", "muon_lr"), [(0.0, 0.0), (0.9, 0.0), (0.0, 2e-2)])
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path, stop: int, decay: float, muon_lr: float) -> None:
    def interrupted(step: int) -> Batch:
        if step == stop:
            raise StopError
        return batch_at(step)

    train = config(ema_decay=decay, muon_lr=muon_lr, schedule="cosine", warmup_steps=3, validate_every=3)
    options = {"validate": lambda model: {"first": model(batch_at(0)["x"]).sum().item()}}
    torch.manual_seed(1)
    whole = run(tmp_path / "whole", train, **options)
    with pytest.raises(StopError):
        run(tmp_path / "cut", train, interrupted, **options)
    torch.rand(17)  # a new process has another global state
    resumed = run(tmp_path / "cut", train.model_copy(update={"checkpoint_every": 2}), **options)
    same_weights(whole.model, resumed.model, **EXACT)
    assert whole.history == resumed.history
    assert [line["step"] for line in whole.history] == [3, 5, 6, 9, 10, 12]
    whole_state, resumed_state = (find_state(result.state) for result in (whole, resumed))
    assert whole_state.keys() == resumed_state.keys()
    assert all(torch.equal(value, resumed_state[name]) for name, value in whole_state.items())


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path, config())

    def never(step: int) -> Batch:
        raise AssertionError("asked for a batch")

    again = run(tmp_path, config(), never)
    same_weights(first.model, again.model, **EXACT)
    assert again.history == first.history
    assert not again.model.training


def test_a_state_of_another_config_is_refused(tmp_path: Path) -> None:
    run(tmp_path, config())
    with pytest.raises(UserError, match=r"toy\.state/step-12: key 'lr': .* trained with 0\.01, found 0\.02"):
        run(tmp_path, config(lr=0.02))
    run(tmp_path, config(log_every=1, accumulate=2))  # these change no result


def test_a_truncated_state_is_named(tmp_path: Path) -> None:
    (part,) = run(tmp_path, config()).state.rglob("part-*")
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"part-0-of-1\.safetensors: expected a complete safetensors file"):
        run(tmp_path, config())


def test_validation_sees_the_model_to_use(tmp_path: Path) -> None:
    seen: list[nn.Module] = []

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        seen.append(model)
        return {"score": 1.0}

    result = run(tmp_path, config(ema_decay=0.5), validate=validate)
    same_weights(seen.pop(), result.model, **EXACT)
    assert result.history[-1]["validation/score"] == 1.0
    raw = run(tmp_path / "raw", config(validate_every=5), validate=validate)
    assert seen == [raw.model] * 3


SCORES = {2: 0.4, 4: 0.7, 6: 0.7, 8: 0.6, 10: 0.5, 12: 0.9}


@pytest.mark.parametrize("stop", [None, 5, 7])
def test_patience_stops_and_takes_the_best_weights(tmp_path: Path, stop: int | None) -> None:
    """The best is the later of two equal ones; after two worse ones no further step is taken, resumed or not."""
    weights: dict[int, dict[str, torch.Tensor]] = {}
    done = 0

    def batches(step: int) -> Batch:
        nonlocal done, stop
        if step == stop:
            stop = None
            raise StopError
        done = step + 1
        return batch_at(step)

    def validate(model: nn.Module) -> dict[str, float]:
        weights[done] = {name: value.clone() for name, value in model.state_dict().items()}
        return {"score": SCORES[done]}

    train = config(validate_every=2, patience=2, checkpoint_every=4)
    options = {"validate": validate, "score": "score"}
    if stop:
        with pytest.raises(StopError):
            run(tmp_path, train, batches, **options)
    result = run(tmp_path, train, batches, **options)
    assert done == 10
    assert result.validation == {"step": 6, "validation/score": 0.7}
    assert all(torch.equal(value, weights[6][name]) for name, value in result.model.state_dict().items())
    again = run(tmp_path, train, batches, **options)
    assert done == 10 and again.validation == result.validation
    again.clean()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_patience_without_a_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected patience=0 where nothing is validated, found 2"):
        run(tmp_path, config(patience=2))


def test_bf16_learns_too(tmp_path: Path) -> None:
    history = run(tmp_path, config(steps=60, precision="bf16", log_every=10)).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_more_micro_batches_than_samples_are_refused() -> None:
    trainer = Trainer(net(), OptimConfig(), Dist(), 1)
    with pytest.raises(UserError, match="expected 9 samples or more, one for each of 1 processes and 9 micro-batches"):
        trainer.step(batch_at(0), loss_fn, micro_batches=9)


def test_split_covers_the_batch_in_order() -> None:
    parts = split({"x": torch.arange(7), "n": list("abcdefg")}, 3)
    assert [len(part["n"]) for part in parts] == [2, 2, 3]
    assert torch.cat([part["x"] for part in parts]).tolist() == list(range(7))
    assert "".join("".join(part["n"]) for part in parts) == "abcdefg"
