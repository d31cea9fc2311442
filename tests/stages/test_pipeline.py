"""The order of stages, with stages that only note that they ran."""

import json
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wovr.core.errors import UserError
from wovr.core.train import TrainConfig
from wovr.stages import pipeline
from wovr.stages.eval_config import WorldModelEvalConfig
from wovr.stages.experiment import CodecStageConfig, Experiment, Workplace
from wovr.stages.pipeline import STAGES, Stage, open_workplace, run_all, run_command, run_stage

EXPERIMENT = Experiment(codec=CodecStageConfig(pretrained=None, train=TrainConfig(steps=1)))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """a -> b -> c, where d needs a alone, shares its command with e, and e needs c."""
    names: list[str] = []

    def stage(name: str, command: str, *needs: str) -> Stage:
        module = types.ModuleType(f"fake_{name}")
        module.run = lambda place: names.append(name) or {"by": name}  # type: ignore[attr-defined, func-returns-value]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Stage(command, module.__name__, needs, "-", "-")

    table = {
        "a": stage("a", "make-a"),
        "b": stage("b", "make-b", "a"),
        "c": stage("c", "make-c", "b"),
        "d": stage("d", "look", "a"),
        "e": stage("e", "look", "c"),
        "report": stage("report", "report", "d"),
    }
    monkeypatch.setattr(pipeline, "STAGES", table)
    return names


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with open_workplace(EXPERIMENT, tmp_path / "run", plain=True) as workplace:
        yield workplace


def test_the_table_is_an_order() -> None:
    for position, stage in enumerate(STAGES.values()):
        assert all([*STAGES].index(need) < position for need in stage.needs)


def test_work_of_the_first_rank_alone_shares_its_frame_memory(place: Workplace) -> None:
    lone = place.alone()
    assert lone.memory is place.memory and lone.run is place.run and lone.dist.world_size == 1


def test_all_stages_once_then_only_the_report(ran: list[str], place: Workplace) -> None:
    run_all(place)
    run_all(place)
    assert ran == ["a", "b", "c", "d", "e", "report", "report"]
    manifest = json.loads((place.run.path / "manifest.json").read_text())
    assert manifest["stages"]["b"]["summary"] == {"by": "b"} and manifest["stages"]["b"]["seconds"] >= 0


def test_a_failed_stage_is_not_done_and_goes_on(
    ran: list[str], place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(place: Workplace) -> dict:
        raise UserError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["fake_b"], "run", fails)
        with pytest.raises(UserError, match="disk"):
            run_all(place)
    assert ran == ["a"] and not place.run.stage_done("b")
    run_all(place)
    assert ran == ["a", "b", "c", "d", "e", "report"]


def test_done_stages_survive_the_process(ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):
        with open_workplace(
            EXPERIMENT,
            tmp_path / "run",
            plain=True,
        ) as place:
            run_stage(place, "a")
    assert ran == ["a"]
    assert re.search(r"a: done \d+ s ago, skipped", capsys.readouterr().err)


def test_what_must_come_first_is_named(ran: list[str], place: Workplace) -> None:
    with pytest.raises(UserError, match=r"c: expected stage 'a' to be done.*run `wovr make-a CONFIG` first"):
        run_command(place, "make-c")
    run_command(place, "make-a")
    with pytest.raises(UserError, match=r"expected stage 'b' .* `wovr make-b CONFIG`"):
        run_command(place, "make-c")
    assert ran == ["a"]


def test_a_command_measures_what_there_is(ran: list[str], place: Workplace, capsys: pytest.CaptureFixture) -> None:
    run_command(place, "make-a")
    run_command(place, "look")
    assert ran == ["a", "d"]
    assert "e: left out, it needs `wovr make-b CONFIG` first" in capsys.readouterr().err


def test_a_measure_is_repeated_once_something_before_it_is_newer(ran: list[str], place: Workplace) -> None:
    for command in ("make-a", "look", "look"):
        run_command(place, command)
    assert ran == ["a", "d"]
    run_command(place, "make-b")
    run_command(place, "look")
    assert ran == ["a", "d", "b", "d"]


def test_a_command_may_run_some_of_its_stages(ran: list[str], place: Workplace) -> None:
    run_command(place, "make-a")
    run_command(place, "make-b")
    run_command(place, "make-c")
    run_command(place, "look", ["e"])
    assert ran == ["a", "b", "c", "e"]


def test_a_measure_with_settings_of_its_own_is_repeated_when_they_change(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipeline.STAGES, "d", replace(pipeline.STAGES["d"], section="world_model_eval"))

    def look(**settings: object) -> None:
        changed = EXPERIMENT.model_copy(update={"world_model_eval": WorldModelEvalConfig(**settings)})
        with open_workplace(changed, tmp_path / "run", plain=True) as place:
            run_command(place, "make-a")
            run_command(place, "look")
            assert place.run.config["world_model_eval"]["trajectories"] == settings.get("trajectories", 200)

    for settings in ({}, {}, {"trajectories": 3}, {"trajectories": 3}):
        look(**settings)
    assert ran == ["a", "d", "d"]


def test_own_memories_are_groups_of_frames(toy) -> None:
    with pytest.raises(UserError, match="own_memory: expected a memory of 4 frames or more, found 1"):
        toy("world_model.context.memory_frames=1")
    assert toy("world_model.context.memory_frames=1", "world_model.own_memory=null").world_model.own_memory is None


def test_files_are_looked_for_where_episodes_came_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "run/episodes").mkdir(parents=True)
    missing = EXPERIMENT.model_copy(update={"codec": CodecStageConfig(pretrained=tmp_path / "codec.safetensors")})
    with pytest.raises(UserError, match=r"codec\.safetensors"), open_workplace(missing, tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["episodes"]
