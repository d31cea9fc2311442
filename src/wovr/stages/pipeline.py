"""The stages in order: what each needs, and how one is run, skipped or continued in a run folder.

Their modules are imported when they run, so that the command line can describe them without loading torch.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wovr.core.errors import UserError
from wovr.core.progress import duration

if TYPE_CHECKING:
    from wovr.core.dist import Dist
    from wovr.stages.experiment import Experiment, Workplace


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the method."""

    command: str
    """The command that runs it; one command may run several stages."""
    module: str
    """Its `run(place) -> summary` does the work."""
    needs: tuple[str, ...]
    """Stages that must be done before."""
    reads: str
    """What it reads of the run folder, for people."""
    writes: str
    """What it adds to the run folder, for people."""
    shared: bool = False
    """Whether several ranks do it together; else rank 0 does it while they wait."""
    section: str = ""
    """Section of the experiment that it alone reads: it may change in a run folder, and the stage is then repeated."""


STAGES: dict[str, Stage] = {
    "sft": Stage("sft", "wovr.stages.sft", (), "-", "episodes, sft", shared=True),
    "collect": Stage("collect", "wovr.stages.collect", ("sft",), "sft", "episodes"),
    "codec": Stage("train-wm", "wovr.stages.train_codec", ("collect",), "episodes", "codec", shared=True),
    "reward": Stage("train-wm", "wovr.stages.train_reward", ("codec",), "episodes, codec", "reward", shared=True),
    "world_model": Stage(  # after the reward, since its validation is agreement about success
        "train-wm", "wovr.stages.train_wm", ("reward",), "episodes, codec, reward", "world_model/dit", shared=True
    ),
    "decoder": Stage(
        "train-wm",
        "wovr.stages.train_decoder",
        ("world_model",),
        "episodes, codec, world_model",
        "world_model/codec",
        shared=True,
    ),
    "keyframes": Stage("rl", "wovr.stages.keyframes", ("decoder",), "episodes, world_model, reward", "keyframes"),
    "rl": Stage("rl", "wovr.stages.rl", ("keyframes",), "sft, world_model, reward, keyframes", "rl", shared=True),
    "refine": Stage("refine", "wovr.stages.refine", ("rl",), "all of the above", "episodes, refine", shared=True),
    "eval": Stage("eval", "wovr.stages.evaluate", ("sft",), "sft, rl, refine", "eval"),
    "hallucination": Stage(
        "eval", "wovr.stages.hallucination", ("decoder",), "episodes, world_model, refine", "hallucination"
    ),
    "closed_loop": Stage(
        "eval",
        "wovr.stages.closed_loop",
        ("decoder",),
        "sft, keyframes, rl, world_model, refine",
        "closed_loop",
        section="closed_loop",
    ),
    "world_model_eval": Stage(
        "eval",
        "wovr.stages.world_model_eval",
        ("decoder",),
        "episodes, world_model, refine",
        "world_model_eval",
        section="world_model_eval",
    ),
    "action_following": Stage(
        "eval",
        "wovr.stages.action_following",
        ("decoder",),
        "episodes, world_model, refine",
        "action_following",
        section="action_following",
    ),
    "compare_reward": Stage(
        "eval", "wovr.stages.compare_reward", ("decoder",), "episodes, world_model, refine", "compare_reward"
    ),
    "report": Stage("report", "wovr.stages.report", ("sft",), "all of the above", "report"),
}
"""In the order in which `wovr run` runs them."""
ONLINE = ("sft", "rl", "eval", "report")
"""Stages of an experiment with `rl.simulator=true`, which has no world model; each needs `sft` alone."""
IMAGINING = ("train-wm", "rl", "refine")
"""Commands that make a world model for the policy, or let it act in one."""


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in a YAML file, with `key=value` overrides. UserError in one line."""
    from wovr.core.config import load_config
    from wovr.stages.experiment import Experiment

    return load_config(Experiment, path, overrides)


@contextmanager
def open_workplace(
    experiment: Experiment,
    path: Path,
    *,
    plain: bool = False,
    wandb: str | None = None,
    dist: Dist | None = None,
) -> Iterator[Workplace]:
    """Make or continue the run folder `path`. `plain` prints lines instead of bars; `wandb` names a project.

    A new run looks for its pretrained files and for those of its metrics first, and does not find out an hour later
    that one is missing. Among several processes rank 0 alone writes the folder.
    """
    from wovr.core.dist import Dist
    from wovr.core.log import RunLog
    from wovr.core.run import MANIFEST, RunFolder
    from wovr.stages.experiment import Workplace

    dist = dist or Dist()
    if not (path / MANIFEST).exists():  # episodes may be there before a run is
        _check_files(experiment)
    may_change = {stage.section for stage in STAGES.values() if stage.section} | {"frame_memory"}
    if dist.is_main:
        folder = RunFolder.open(path, experiment.model_dump(mode="json"), ignore=may_change)
        dist.barrier()
    else:
        dist.barrier()
        folder = RunFolder.follow(path)
    with (
        folder as run,
        closing(RunLog(path, plain=plain, wandb_project=wandb, active=dist.is_main)) as log,
    ):
        yield Workplace(experiment, run, log, dist)


def _check_files(experiment: Experiment) -> None:
    """UserError where a file that the experiment starts from is missing, damaged or of other sizes. Headers tell."""
    for name, check in FILE_CHECKS.items():
        if name == "policy" or not experiment.rl.simulator:
            check(experiment)


def _check_codec(experiment: Experiment) -> None:
    from wovr.codec.wan_weights import check_wan_codec
    from wovr.core.checkpoint import read_header

    codec = experiment.codec
    if codec.pretrained is not None and codec.wan is not None:
        check_wan_codec(codec.pretrained, codec.wan)
    elif codec.pretrained is not None:
        read_header(codec.pretrained)


def _check_world_model(experiment: Experiment) -> None:
    from wovr.dit.context import layout
    from wovr.dit.weights import check_wan, is_wan

    codec, world = experiment.codec, experiment.world_model
    sized = world.pretrained is None or is_wan(world.pretrained)  # else by wovr's own file
    if sized and codec.wan is not None and codec.wan.channels != world.dit.channels:
        raise UserError(
            f"key 'world_model.dit.channels': expected {codec.wan.channels} as in `codec.wan`, "
            f"found {world.dit.channels}"
        )
    if sized and world.dit.action_dim != experiment.policy.action_dim:
        raise UserError(
            f"key 'world_model.dit.action_dim': expected {experiment.policy.action_dim} as the policy has, "
            f"found {world.dit.action_dim}"
        )
    if sized and world.pretrained is not None:
        check_wan(world.pretrained, world.dit, layout(world.context, experiment.policy.chunk_length))


def _check_metrics(experiment: Experiment) -> None:
    from wovr.metrics.published import find_files

    find_files(experiment.world_model_eval.metrics, experiment.world_model_eval.weights)


def _check_policy(experiment: Experiment) -> None:
    from wovr.policy.files import check_policy

    check_policy(experiment.policy)


FILE_CHECKS: dict[str, Callable[[Experiment], None]] = {
    "policy": _check_policy,
    "codec": _check_codec,
    "world model": _check_world_model,
    "metrics": _check_metrics,
}
"""What a run starts from, and what raises UserError where it is not there."""


def stages_of(experiment: Experiment) -> list[str]:
    """What `wovr run` runs."""
    return list(ONLINE if experiment.rl.simulator else STAGES)


def _check_sight(experiment: Experiment) -> None:
    """UserError where a policy is to act in imagination and looks at what imagination does not show."""
    policy = experiment.policy
    key = "views" if policy.views == 2 else "proprio"
    if not experiment.rl.simulator and (policy.views == 2 or policy.proprio):
        raise UserError(
            f"key 'policy.{key}': expected {1 if key == 'views' else 0} for RL in imagination, which shows the scene's "
            f"frames alone, found {getattr(policy, key)}; rl.simulator=true trains in the true simulator"
        )


def run_all(place: Workplace) -> None:
    """Every stage that is not done yet, and the report."""
    _check_sight(place.experiment)
    _run_stages(place, stages_of(place.experiment))


def run_command(place: Workplace, command: str, only: Collection[str] = ()) -> None:
    """The stages of one command, or those of them in `only`.

    Only the first must have all that it needs: evaluation measures what there is. UserError where the experiment has
    none of them.
    """
    names = [name for name in STAGES if STAGES[name].command == command and (not only or name in only)]
    if place.experiment.rl.simulator and command != "collect":
        names = [name for name in names if name in ONLINE]
    if not names:
        raise UserError(f"{command}: expected an experiment with a world model, found key 'rl.simulator': true")
    if command in IMAGINING:
        _check_sight(place.experiment)
    _run_stages(place, names)


def run_stage(place: Workplace, name: str) -> None:
    """Run one stage, unless it is done and nothing before it is newer. UserError where what it needs is not done."""
    done, missing = place.run.stages(), _missing(place, name)
    if missing:
        command = STAGES[missing].command
        raise UserError(
            f"{place.run.path}: {name}: expected stage '{missing}' to be done, found it is not; "
            f"run `wovr {command} CONFIG` first"
        )
    section = _section(place, name)
    if name != "report" and _up_to_date(done, name, section):
        place.log.passed(name, f"done {duration(time.time() - done[name]['finished'])} ago, skipped", done=True)
        return
    if STAGES[name].shared:
        _work(place, name, section)
    elif place.dist.is_main:
        _work(place.alone(), name, section)
    place.dist.barrier()
    if not place.dist.is_main:
        place.run.refresh()


def _work(place: Workplace, name: str, section: Mapping[str, Any]) -> None:
    began = time.monotonic()
    with place.log.stage(name):
        summary = importlib.import_module(STAGES[name].module).run(place)
        if place.dist.is_main:
            seconds = time.monotonic() - began
            place.run.mark_done(name, seconds, summary | ({"settings": section} if section else {}))


def _run_stages(place: Workplace, names: list[str]) -> None:
    """One after the other, until the alarm of RL says stop."""
    with place.log.stages(names, place.run.expected(ignore=("seed", "frame_memory"))):
        for name in names:
            missing = _missing(place, name)
            if missing and name != names[0]:
                needed = f"left out, it needs `wovr {STAGES[missing].command} CONFIG` first"
                place.log.passed(name, needed, done=False)
            else:
                before = place.run.stages().get(name)
                run_stage(place, name)
                after = place.run.stages()[name]
                if after != before and after["summary"].get("alarm", {}).get("action") == "stop":
                    place.log.info(f"{name}: stopped by its alarm; the same command goes on after it")
                    return


def _missing(place: Workplace, name: str) -> str | None:
    """The first stage, in their order, that must be done before `name` and is not."""
    needs = STAGES[name].needs
    if place.experiment.rl.simulator and name in ONLINE:
        needs = () if name == "sft" else ("sft",)
    for need in needs:
        if not place.run.stage_done(need):
            return _missing(place, need) or need
    return None


def _section(place: Workplace, name: str) -> dict[str, Any]:
    """The values of a stage's own section, empty where it has none."""
    section = STAGES[name].section
    return getattr(place.experiment, section).model_dump(mode="json") if section else {}


def _up_to_date(done: Mapping[str, Any], name: str, section: Mapping[str, Any]) -> bool:
    """Whether a stage is done, with the same section and after all stages before it.

    So evaluation is repeated once there is a newer policy.
    """
    if name not in done or done[name]["summary"].get("settings", {}) != section:
        return False
    earlier = [*STAGES][: [*STAGES].index(name)]
    return all(done[stage]["finished"] <= done[name]["finished"] for stage in earlier if stage in done)
