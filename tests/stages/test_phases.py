"""Collocated placement: what moves, when, and that results are the same; a policy acts as it is trained."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.stages.prepared import experiment, prepare, ready, updates
from wovr.core.checkpoint import load_tensors
from wovr.core.log import read_records
from wovr.core.placement import Parked
from wovr.policy.small import SmallVLA
from wovr.stages import groups, pipeline, rl
from wovr.stages.phases import Phases
from wovr.stages.rl import IMAGINATION


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "prepared"
    prepare(path)
    return path


def run_rl(prepared: Path, path: Path, *overrides: str) -> Path:
    config = experiment(*overrides)
    ready(prepared, path, config)
    with pipeline.open_workplace(config, path, plain=True) as place:
        pipeline.run_command(place, "rl")
    return path


def test_only_the_border_between_phases_moves_anything(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = run_rl(prepared, tmp_path / "resident")
    made: list[Phases] = []
    events: list[str] = []
    init = Phases.__init__

    def remembered(self: Phases, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)  # type: ignore[arg-type]
        made.append(self)

    def noted(name: str) -> None:
        inner = getattr(Parked, name)

        def move(self: Parked) -> None:
            events.append(f"{name} {'world' if self in made[0].of_rollouts else 'training'}" if made else "start")
            inner(self)

        monkeypatch.setattr(Parked, name, move)

    def phase(name: str, inner: object) -> None:
        def call(*args: object, **kwargs: object) -> object:
            events.append(name)
            return inner(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(f"wovr.stages.{name}", call)

    monkeypatch.setattr(Phases, "__init__", remembered)
    noted("park")
    noted("bring")
    phase("groups.rollout", groups.rollout)
    phase("rl.update_policy", rl.update_policy)
    collocated = run_rl(prepared, tmp_path / "collocated", "rl.collocated=true")

    there = ["park world", "bring training", "bring training"]  # the optimiser's state and the base policy
    back = ["park training", "park training", "bring world"]
    update = ["groups.rollout", *there, "rl.update_policy"]
    assert events == ["start", "start", *(update + back) * 4, *update]
    (phases,) = made
    assert phases.moves == 2 + 3 * 9

    assert updates(resident) == updates(collocated)
    ours, theirs = load_tensors(resident / IMAGINATION)[0], load_tensors(collocated / IMAGINATION)[0]
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_metrics_of_an_update(prepared: Path, tmp_path: Path) -> None:
    path = run_rl(prepared, tmp_path / "run")
    line = next(line for line in read_records(path / "metrics.jsonl") if line["stage"] == "rl")
    asked = (
        "success valid_steps groups groups_failed groups_succeeded groups_equal ratio clip_fraction entropy kl kl_base "
    )
    asked += "log_prob_gap frames_per_second seconds_rollout seconds_training memory_rollout_gb memory_training_gb"
    assert set(asked.split()) <= set(line)
    assert line["seconds_rollout"] > 0 and line["memory_rollout_gb"] > 0.1


def test_without_the_mask_every_step_of_every_rollout_counts(prepared: Path, tmp_path: Path) -> None:
    """Of 8 trajectories of four chunks, two to a group."""
    masked = updates(run_rl(prepared, tmp_path / "masked"))
    unmasked = updates(run_rl(prepared, tmp_path / "unmasked", "rl.update.grpo.mask_after_success=false"))
    assert all(line["valid_steps"] < 32 for line in masked)
    assert all(line["valid_steps"] == 32 and line["rows"] == 8 * (4 - line["groups_equal"]) for line in unmasked)
    assert masked[0]["success"] == unmasked[0]["success"], "of the same policy: the return is that of first success"


def test_a_gap_between_rollout_and_training_is_told_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As of a rollout at another temperature than the training's."""
    act = SmallVLA.act

    def hotter(self: SmallVLA, *args: object, temperature: float, **kwargs: object) -> object:
        found = act(self, *args, temperature=temperature, **kwargs)  # type: ignore[arg-type]
        return dataclasses.replace(found, log_probs_BK=found.log_probs_BK - 0.3)

    monkeypatch.setattr(SmallVLA, "act", hotter)
    run_rl(prepared, tmp_path / "run")
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("differ from the rollout's by 0.3 nats a token, more than rl.largest_gap=0.05") == 1
