"""The study at toy size: cells share what they can, finished ones are kept, and the tables say what they hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from wovr.core.checkpoint import read_json, write_json
from wovr.core.errors import UserError
from wovr.core.log import read_records
from wovr.core.run import RunFolder
from wovr.imagine.load import DIT, load_dit
from wovr.metrics.success import T95, t95
from wovr.stages import pipeline, study
from wovr.stages.experiment import Experiment
from wovr.stages.fork import agreeing, fork
from wovr.stages.pipeline import load_experiment
from wovr.stages.study import StudyConfig, budget, digest, result_path, run_study
from wovr.stages.study_table import MARKS, read_cells, write_tables

CELLS = {
    "wovr": {"title": "WoVR"},
    "online": {"title": "GRPO online", "overrides": ["rl.simulator=true"]},
    "no_kir": {"title": "without KIR", "overrides": ["rl.starts.keyframe_fraction=0"]},
    "adaln": {
        "title": "AdaLN alone",
        "overrides": ["world_model.dit.cross_attention=false"],
        "measure": "world",
        "table": "world",
    },
}
Toy = Callable[..., Experiment]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy: Toy) -> Path:
    """The study's config, and a backbone that its world model starts from."""
    path = tmp_path_factory.mktemp("study")
    config = toy("eval.initial_states=2")
    with pipeline.open_workplace(config, path / "backbone", plain=True) as place:
        for name in ("sft", "collect", "codec", "reward", "world_model"):
            pipeline.run_stage(place, name)
    text = config.model_dump(mode="json")
    text["world_model"]["pretrained"] = str(path / "backbone" / DIT)
    text["collect"]["held_out"], text["refine"]["updates"] = 0.2, 1
    (path / "toy.yaml").write_text(yaml.safe_dump(text))
    (path / "study.yaml").write_text(yaml.safe_dump({"experiment": "toy.yaml", "seeds": [0, 1], "cells": CELLS}))
    return path


def settings(folder: Path) -> StudyConfig:
    return StudyConfig(
        experiment=folder / "toy.yaml", seeds=(0, 1), cells={k: study.StudyCell(**v) for k, v in CELLS.items()}
    )


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    """Seed 0 of every cell."""
    left = run_study(settings(folder), folder / "runs", folder / "results", seeds=(0,), plain=True)
    assert left == 0
    return folder


def test_cells_share_what_they_agree_on(done: Path) -> None:
    runs = done / "runs" / "seed0"
    stages = {cell: RunFolder.read(runs / cell).stages() for cell in ("trunk", *CELLS)}
    for name in ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes"):
        assert stages["no_kir"][name] == stages["wovr"][name] == stages["trunk"][name]
    assert stages["adaln"]["reward"] == stages["trunk"]["reward"]
    assert stages["adaln"]["world_model"] != stages["trunk"]["world_model"]
    assert "rl" not in stages["trunk"] and "rl" not in stages["adaln"] and "decoder" not in stages["online"]
    assert (runs / "no_kir" / DIT).samefile(runs / "trunk" / DIT)


def test_a_fork_is_the_run_that_it_stands_for(done: Path, tmp_path: Path) -> None:
    """The cell without KIR, run by itself from the beginning, ends with the same policy."""
    config = settings(done).of("no_kir", 0)
    with pipeline.open_workplace(config, tmp_path / "alone", plain=True) as place:
        for name in pipeline.stages_of(config)[: [*pipeline.STAGES].index("refine") + 1]:
            pipeline.run_stage(place, name)
    for path in ("rl/policy.safetensors", "refine/round_1/rl/policy.safetensors"):
        alone, forked = (load_file(run / path) for run in (tmp_path / "alone", done / "runs" / "seed0" / "no_kir"))
        assert all(torch.equal(alone[name], value) for name, value in forked.items())
    ledgers = [RunFolder.read(run).ledger() for run in (tmp_path / "alone", done / "runs" / "seed0" / "no_kir")]
    for policy, spent in {"base": 8, "imagination": 8 + 16, "pace": 8 + 16 + 8}.items():
        assert budget(ledgers[0], policy) == budget(ledgers[1], policy) == spent
    lines = [line["stage"] for line in read_records(done / "runs" / "seed0" / "no_kir" / "metrics.jsonl")]
    assert lines.count("codec") == 1


def test_only_the_settings_of_earlier_stages_stand_in_the_way() -> None:
    plain = dict.fromkeys(("seed", "simulator", "policy", "sft", "collect", "codec", "reward", "near_success"), 0)
    plain |= {"world_model": 0, "decoder": 0, "keyframes": 0, "rl": 0}
    assert agreeing(plain, plain | {"rl": 1})[-1] == "keyframes"
    assert agreeing(plain, plain | {"near_success": 1}) == ["sft", "collect", "codec"]
    assert agreeing(plain, plain | {"seed": 1}) == []


def test_a_fork_without_the_collection_leaves_its_episodes(done: Path, tmp_path: Path) -> None:
    config = settings(done).of("wovr", 0)
    other = config.model_copy(update={"collect": config.collect.model_copy(update={"episodes": 24})})
    assert fork(done / "runs" / "seed0" / "trunk", tmp_path / "run", other) == ["sft"]
    with pipeline.open_workplace(other, tmp_path / "run", plain=True) as place:
        assert {place.episodes().info(name).purpose for name in place.episodes().names} == {"demonstrations"}
        pipeline.run_stage(place, "collect")
        assert place.run.ledger()["collect"]["episodes"] == 24


def test_a_cell_says_what_was_measured(done: Path) -> None:
    wovr, online, _, adaln = (read_json(result_path(done / "results", cell, 0)) for cell in CELLS)
    assert set(wovr["success"]) == {"base", "imagination", "pace"} and set(online["success"]) == {"base", "imagination"}
    found = wovr["success"]["pace"]
    assert len(found["outcomes"]) == found["n"] and found["outcomes"].count("1") == found["successes"]
    assert wovr["world_model"]["worlds"] and wovr["closed_loop"]["worlds"] and not online["hallucination"]
    assert not adaln["success"] and adaln["action_following"]["worlds"]


def test_finished_cells_are_not_run_again_and_the_rest_goes_on(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, int]] = []

    def pretend(config: StudyConfig, cell: str, experiment: Experiment, folder: Path, *, plain: bool) -> object:
        ran.append((cell, experiment.seed))
        return read_json(result_path(done / "results", cell, 0)) | {"seed": experiment.seed}

    monkeypatch.setattr(study, "run_cell", pretend)
    results = done / "more"
    shutil.copytree(done / "results", results)
    assert run_study(settings(done), done / "runs", results, limit=1) == 3
    assert run_study(settings(done), done / "runs", results) == 0
    assert ran == [(cell, 1) for cell in CELLS]


def test_the_tables_hold_what_the_cells_hold(done: Path, tmp_path: Path) -> None:
    """The second seed's cells are copies of the first one's, hence not of its settings: they have a star."""
    results = tmp_path / "results"
    shutil.copytree(done / "results", results)
    for cell, outcomes in {"wovr": "11101110", "no_kir": "10001000"}.items():
        for seed in (0, 1):
            found = read_json(result_path(results, cell, 0)) | {"seed": seed}
            success = {"rate": 0.0, "successes": 0, "n": 8, "outcomes": outcomes}
            found["success"] = {name: success | {"rate": outcomes.count("1") / 8} for name in found["success"]}
            write_json(result_path(results, cell, seed), found)
    document = tmp_path / "docs" / "study.md"
    (tmp_path / "docs" / "images").mkdir(parents=True)
    marks = ["\n".join(mark.format(name=name) for mark in MARKS) for name in ("policy", "world", "recorded")]
    document.write_text("Before.\n" + "\n\nBetween.\n".join(marks) + "\nAfter.\n")
    for _ in range(2):  # again over itself
        write_tables(settings(done), results, document)
    text = document.read_text()
    tables = (part.splitlines() for part in text.split("Between."))
    rows = ({line.split("|")[1].strip(): line for line in part if line.startswith("|")} for part in tables)
    policy, world, _ = rows
    assert "| 75.0 % (50.5 to 89.8), n = 16 | 75.0 / 75.0* |" in policy["WoVR"]
    assert "| 25.0 % (10.2 to 49.5), n = 16 | 25.0 / 25.0* | -50.0 (" in policy["without KIR"]
    assert world["AdaLN alone"].split("|")[2].strip() == "1" and "WoVR" in world and "AdaLN alone" not in policy
    counts = read_json(result_path(results, "wovr", 0))["hallucination"]["base"]["collect"]["overall"]["counts"]
    recorded = next(line for line in text.splitlines() if line.startswith("| base | base policy |"))
    assert f", n = {sum(counts.values())} |" in recorded  # the copy, of other settings, is left out
    assert text.startswith("Before.") and "Between." in text and text.endswith("After.\n")
    drawn = (document.parent / "images" / "study.svg").read_text()
    assert "without KIR" in drawn
    rings = [line for line in drawn.splitlines() if "<use" in line and "fill-opacity: 0" in line]
    assert len(rings) == 4 * 2 + 1  # a seed each: two of base, before PACE, WoVR and without KIR, one of GRPO online


def test_cells_of_earlier_settings_have_a_star(done: Path, tmp_path: Path) -> None:
    config = settings(done)
    stars = {name: [cell["star"] for cell in of] for name, of in read_cells(config, done / "results").items()}
    assert set(stars) == set(CELLS) and all(star == [""] for star in stars.values())

    earlier = tmp_path / "results"
    shutil.copytree(done / "results", earlier)
    path = result_path(earlier, "no_kir", 0)
    write_json(path, read_json(path) | {"experiment": "of other settings"})
    assert [cell["star"] for cell in read_cells(config, earlier)["no_kir"]] == ["*"]


def test_the_digest_reads_what_is_in_the_files(folder: Path, tmp_path: Path) -> None:
    """The same weights at another place are the same cell; other weights at the same place are not."""
    config, moved = settings(folder).of("wovr", 0), tmp_path / "dit.safetensors"
    assert config.world_model.pretrained is not None
    moved.write_bytes(config.world_model.pretrained.read_bytes())
    world = config.world_model.model_copy(update={"pretrained": moved})
    other = config.model_copy(update={"world_model": world})
    assert digest(other, "policy") == digest(config, "policy")
    moved.write_bytes(b"other weights")
    assert digest(other, "policy") != digest(config, "policy")
    online = settings(folder).of("online", 0)
    assert digest(online, "policy") == digest(online.model_copy(update={"world_model": world}), "policy")
    assert digest(online, "policy") != digest(online.model_copy(update={"seed": 1}), "policy")


def test_a_world_models_cell_asks_not_how_a_policy_is_trained(folder: Path) -> None:
    of = settings(folder).of("adaln", 0)
    other = of.model_copy(update={"rl": of.rl.model_copy(update={"updates": 7})})
    assert digest(other, "policy") != digest(of, "policy")
    assert digest(other, "world") == digest(of, "world")
    further = of.model_copy(update={"rl": of.rl.model_copy(update={"keyframe_steps": 8})})
    assert digest(further, "world") != digest(of, "world")
    assert digest(of.model_copy(update={"seed": 1}), "world") != digest(of, "world")


def test_a_variant_of_the_pretrained_network_keeps_what_fits(done: Path) -> None:
    plain, _, _ = load_dit(done / "runs" / "seed0" / "trunk" / DIT)
    adaln, _, _ = load_dit(done / "runs" / "seed0" / "adaln" / DIT)
    assert plain.config.cross_attention and not adaln.config.cross_attention
    backbone = load_file(done / "backbone" / DIT)
    after = adaln.state_dict()
    assert set(after) < set(backbone)
    name = "patch_embedding.weight"
    assert torch.allclose(after[name].float(), backbone[name].float(), atol=0.05)  # a few steps away


def test_what_does_not_fit_is_said_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--cell: expected wovr, online, no_kir, adaln, found 'wmpo'"):
        run_study(settings(folder), tmp_path / "runs", tmp_path / "results", cells=("wmpo",))
    cells = CELLS | {"bad": {"title": "bad", "overrides": ["rl.nothing=1"]}}
    bad = StudyConfig(experiment=folder / "toy.yaml", cells={k: study.StudyCell(**v) for k, v in cells.items()})
    with pytest.raises(UserError, match=r"rl\.nothing"):
        run_study(bad, tmp_path / "runs", tmp_path / "results")
    online = settings(folder).model_copy(update={"trusted": "online"})  # trains a policy, but nothing is imagined
    with pytest.raises(UserError, match="trusted: expected a cell with a world model, found 'online'"):
        run_study(online, tmp_path / "runs", tmp_path / "results")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValidationError, match="cells: expected one without overrides, found none"):
        StudyConfig(experiment=folder / "toy.yaml", cells={"bad": study.StudyCell(**cells["bad"])})
    for cell in ("adaln", "nobody"):  # one without a policy's training, and none at all
        with pytest.raises(ValidationError, match=f"trusted: expected a cell whose policy is trained, found '{cell}'"):
            StudyConfig.model_validate(settings(folder).model_dump() | {"trusted": cell})


def test_a_study_may_be_of_other_values_than_the_experiment_has(folder: Path) -> None:
    """Its own go over the experiment's, and a cell's over those."""
    half = settings(folder).model_copy(update={"overrides": ("rl.starts.keyframe_fraction=0.25",)})
    assert half.plain == "wovr"
    shares = {name: half.of(name, 0).rl.starts.keyframe_fraction for name in CELLS}
    assert shares == {"wovr": 0.25, "online": 0.25, "no_kir": 0.0, "adaln": 0.25}


def test_trust_is_told_of_the_cell_that_is_named(done: Path, tmp_path: Path) -> None:
    document, mark = tmp_path / "study.md", [mark.format(name="recorded") for mark in MARKS]
    results = tmp_path / "results"
    shutil.copytree(done / "results", results)
    path = result_path(results, "no_kir", 0)
    found = read_json(path)
    for source in found["hallucination"]["base"].values():
        source["overall"]["counts"] = {"both_succeed": 900, "false_success": 0, "false_failure": 0, "both_fail": 0}
    write_json(path, found)
    for trusted, told in ((None, False), ("no_kir", True)):
        document.write_text("\n".join(mark))
        write_tables(settings(done).model_copy(update={"trusted": trusted}), results, document)
        assert ("n = 900" in document.read_text()) == told


def test_the_study_that_ships_has_valid_cells() -> None:
    from wovr.core.config import load_config

    root = Path(__file__).parents[2]
    config = load_config(StudyConfig, root / "configs" / "study.yaml", [])
    for cell in config.cells:
        assert json.dumps(config.of(cell, 0).model_dump(mode="json"))
    demo = load_experiment(root / "configs" / "tabletop.yaml", ["seed=0"])
    assert config.trusted and config.of(config.trusted, 0) == demo  # what is told of trust is told of the demo
    document = (root / "docs" / "study.md").read_text()
    for name in {cell.table for cell in config.cells.values()}:
        assert all(mark.format(name=name) in document for mark in MARKS)


def test_quantiles_of_student() -> None:
    """Halves of the interval of the mean of two and of eleven numbers, from a printed table."""
    assert (t95(1), t95(2), t95(9), t95(40)) == (12.7062, 4.3027, 2.2622, T95[-1])
