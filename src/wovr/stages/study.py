"""The study: variants of one experiment at equal budget of true rollouts, over seeds, one cell at a time.

A cell is one variant with one seed. What its experiment shares with the plain one of its seed is computed once
(`wovr.stages.fork`). Variants of the policy's training run to its end and are judged by true success; variants of the
world model or the reward end with them, and are judged by their own measures, as in the paper's Table 4. A finished
cell is one JSON file, which is kept: the study goes on where it stopped, on another day or machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from wovr.core.checkpoint import read_json, write_json
from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.core.hardware import processor
from wovr.core.run import RunFolder
from wovr.stages import action_following, closed_loop, compare_reward, hallucination, world_model_eval
from wovr.stages.experiment import Experiment
from wovr.stages.fork import PARTS, agreeing, fork
from wovr.stages.pipeline import load_experiment, open_workplace, run_stage, stages_of

TRUNK = "trunk"
"""Folder of what the cells of one seed share; it never goes beyond `wovr.stages.fork.PARTS`."""
POLICY = ("rl", "refine", "eval", "hallucination", "closed_loop")
"""Stages of a cell that trains a policy, beside those that can be shared."""
WORLD_MEASURES = ("hallucination", "world_model_eval", "action_following", "compare_reward")
ONLINE = ("seed", "simulator", "policy", "sft", "rl", "eval")
"""Settings that decide a cell without a world model."""
UNTRAINED = ("rl", "refine", "eval", "closed_loop")
"""Settings that decide no cell without a policy's training, but for how far keyframes are followed."""
SUMMARIES = {
    "hallucination": hallucination.SUMMARY,
    "closed_loop": closed_loop.SUMMARY,
    "world_model": world_model_eval.SUMMARY,
    "action_following": action_following.SUMMARY,
    "compare_reward": compare_reward.SUMMARY,
}
"""What a cell's file holds of the run's own summaries, by name."""
BUDGET = {
    "base": ("demonstrations",),
    "imagination": ("demonstrations", "collect", "online"),
    "pace": ("demonstrations", "collect", "online", "refine-"),
}
"""By policy, purposes or their beginnings of the true rollouts that it has learned from. Evaluation is not one, and
play behind a pretrained start is stated apart."""


Measure = Literal["policy", "world"]


class StudyCell(Config):
    """One variant."""

    title: str
    """In the tables."""
    overrides: tuple[str, ...] = ()
    """Over the study's experiment."""
    measure: Measure = "policy"
    """Whether the policy is trained to the end, or the world model alone is made and measured."""
    table: str = "policy"
    """Of `docs/study.md` in which its row stands."""


class StudyConfig(Config):
    """Which variants, of which experiment."""

    experiment: Path
    """YAML file; relative paths are looked up beside the study's."""
    overrides: tuple[str, ...] = ()
    """Over it, in every cell: where the method that is studied is not what the experiment has become."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Every cell is run with each of them."""
    cells: dict[str, StudyCell] = Field(min_length=1)
    """By name, in the order in which they are run. The one without overrides is what the others are compared with."""
    trusted: str | None = None
    """Cell of which the document says how far its imagination can be trusted: one that ends with closed loops. None
    takes the one without overrides."""

    @model_validator(mode="after")
    def _one_is_plain(self) -> Self:
        plain = [name for name, cell in self.cells.items() if not cell.overrides]
        if len(plain) != 1:
            raise ValueError(f"cells: expected one without overrides, found {', '.join(plain) or 'none'}")
        if self.trusted is not None and (self.trusted not in self.cells or self.cells[self.trusted].measure == "world"):
            raise ValueError(f"trusted: expected a cell whose policy is trained, found {self.trusted!r}")
        return self

    @property
    def plain(self) -> str:
        """Name of the cell without overrides."""
        return next(name for name, cell in self.cells.items() if not cell.overrides)

    def of(self, cell: str, seed: int) -> Experiment:
        """A cell's experiment. UserError where an override does not fit."""
        return load_experiment(self.experiment, [*self.overrides, *self.cells[cell].overrides, f"seed={seed}"])


def result_path(results: Path, cell: str, seed: int) -> Path:
    """Where a finished cell lies."""
    return results / f"seed{seed}" / f"{cell}.json"


def run_study(
    config: StudyConfig,
    out: Path,
    results: Path,
    *,
    cells: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    limit: int | None = None,
    plain: bool = False,
    after: Callable[[], object] = lambda: None,
) -> int:
    """Run what is not finished: of all, or of these cells and seeds, at most `limit` cells. Returns how many are left.

    All overrides are checked before the first starts. Run folders lie below `out`, finished cells below `results`.
    `after` is called after each cell, and once where none is run.
    """
    unknown = [name for name in cells if name not in config.cells]
    if unknown:
        raise UserError(f"--cell: expected {', '.join(config.cells)}, found {unknown[0]!r}")
    wanted = [(cell, seed) for seed in seeds or config.seeds for cell in cells or config.cells]
    experiments = {(cell, seed): config.of(cell, seed) for cell, seed in wanted}
    if config.trusted and config.of(config.trusted, config.seeds[0]).rl.simulator:
        raise UserError(f"trusted: expected a cell with a world model, found {config.trusted!r}")
    missing = [key for key in wanted if not result_path(results, *key).is_file()]
    for number, (cell, seed) in enumerate(missing[:limit], start=1):
        print(f"study: {cell}, seed {seed}: {number} of {len(missing)}", flush=True)
        found = run_cell(config, cell, experiments[cell, seed], out / f"seed{seed}", plain=plain)
        write_json(result_path(results, cell, seed), found)
        after()
    if not missing[:limit]:
        after()
    return max(0, len(missing) - (len(missing) if limit is None else limit))


def run_cell(config: StudyConfig, cell: str, experiment: Experiment, folder: Path, *, plain: bool) -> dict[str, Any]:
    """One cell in its run folder, after the trunk of its seed as far as it shares that."""
    settings = config.cells[cell]
    target = folder / cell
    if not experiment.rl.simulator:
        trunk = config.of(config.plain, experiment.seed)
        _run(trunk, folder / TRUNK, agreeing(*(one.model_dump(mode="json") for one in (trunk, experiment))), plain)
        shared = fork(folder / TRUNK, target, experiment)
        print(f"study: {cell}: shares {', '.join(shared) or 'nothing'}", flush=True)
    wanted = {*PARTS} - {"keyframes"} | {*WORLD_MEASURES} if settings.measure == "world" else {*PARTS} | {*POLICY}
    if cell == config.plain:  # what the others are compared with
        wanted |= {*WORLD_MEASURES}
    _run(experiment, target, [name for name in stages_of(experiment) if name in wanted], plain)
    return result(target, cell, settings, experiment)


def _run(experiment: Experiment, path: Path, stages: list[str], plain: bool) -> None:
    with open_workplace(experiment, path, plain=plain) as place:
        for name in stages:
            run_stage(place, name)


def result(run: Path, cell: str, settings: StudyCell, experiment: Experiment) -> dict[str, Any]:
    """What is kept of a finished cell."""
    folder = RunFolder.read(run)
    stages = folder.stages()
    return {
        "cell": cell,
        "seed": experiment.seed,
        "overrides": list(settings.overrides),
        "experiment": digest(experiment, settings.measure),
        "processor": processor(),
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "ledger": folder.ledger(),
        "success": {path.stem: _success(read_json(path)) for path in sorted((run / "eval").glob("*.json"))},
        "reward": stages["reward"]["summary"] if "reward" in stages else {},
        **{name: read_json(run / summary) if (run / summary).is_file() else {} for name, summary in SUMMARIES.items()},
    }


def digest(experiment: Experiment, measure: Measure) -> str:
    """Of all settings that decide a cell, and of what is in the files that they name: a cell of another digest is of
    earlier settings. GRPO in the true simulator has no use for a world model's, a world model none for a policy's."""
    settings = experiment.model_dump(mode="json")
    if experiment.rl.simulator:
        settings = {name: settings[name] for name in ONLINE}
    if measure == "world":
        keyframe_steps = settings["rl"]["keyframe_steps"]
        settings = {name: value for name, value in settings.items() if name not in UNTRAINED}
        settings["keyframe_steps"] = keyframe_steps
    text = json.dumps(_with_contents(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_contents(value: Any) -> Any:
    """`value` with the hash of its contents in place of every file's name."""
    if isinstance(value, dict):
        return {key: _with_contents(one) for key, one in value.items()}
    if isinstance(value, str) and "/" in value and Path(value).is_file():
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    return value


def _success(found: dict[str, Any]) -> dict[str, Any]:
    """Rate and outcomes of one policy; the latter in order of (task, initial state, repeat), so that cells can be
    compared episode by episode."""
    episodes = sorted(found["episodes"], key=lambda one: (one["task_id"], one["init_id"], one["repeat"]))
    return {**found["success"], "outcomes": "".join(str(int(one["success"])) for one in episodes)}


def budget(ledger: dict[str, dict[str, int]], policy: str) -> int:
    """True rollouts that a policy of a cell has learned from."""
    return sum(total["episodes"] for purpose, total in ledger.items() if purpose.startswith(BUDGET[policy]))
