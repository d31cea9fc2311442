"""What a run came to, in a few sentences: the head of its report. Each says no more than the interval beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from wovr.core.progress import duration
from wovr.core.run import RunFolder
from wovr.kir.mine import FIRST_FRAME
from wovr.metrics.hallucination import Confusion
from wovr.stages.evaluate import IMAGINED, TRUE
from wovr.stages.experiment import Experiment
from wovr.stages.world_model_table import WORLDS

POLICIES = {"base": "base policy", "imagination": "after RL in imagination", "pace": "after PACE"}
"""Policies that `eval` measures, in the order in which they are made."""
CAVEAT = (
    "There is no simulator here, so these are successes in imagination: they are worth as much as the replay of "
    "recorded actions below agrees with what was recorded."
)


def policy_labels(online: bool) -> dict[str, str]:
    """POLICIES, of an experiment that trains in the simulator where `online`."""
    return POLICIES | ({"imagination": "after RL in the simulator"} if online else {})


def facts(folder: RunFolder, experiment: Experiment) -> list[str]:
    """What kind of run it is, in a few words each."""
    stages = {name: stage for name, stage in folder.stages().items() if name != "report"}
    found = [f"simulator {experiment.simulator.kind}", f"policy {experiment.policy.kind}", f"seed {experiment.seed}"]
    if stages:
        finished = max(stage["finished"] for stage in stages.values())
        found.append(duration(sum(stage["seconds"] for stage in stages.values())))
        found.append(time.strftime("%-d %B %Y", time.gmtime(finished)))
    return found


def headline(summary: Mapping[str, Any], world: str, *, online: bool) -> dict[str, Any] | None:
    """{where, caveat, ends, gain, verdict, bars}; none before there is an evaluation.

    `ends` are the rates of the first and the last policy, `gain` is their paired difference, `bars` the rates of all.
    """
    success = summary["success"]
    if not success:
        return None
    names, labels = list(success), policy_labels(online)
    ends = [success[names[0]]["rate"], success[names[-1]]["rate"]]
    gain = summary["paired"].get(f"{names[-1]}_minus_{names[0]}")
    return {
        "where": "True success" if world == TRUE else "Imagined success",
        "caveat": CAVEAT if world == IMAGINED else "",
        "ends": ends if len(names) > 1 else ends[:1],
        "gain": gain,
        "verdict": _verdict(gain) if gain else "",
        "bars": [{"label": labels[name], "name": name, **found} for name, found in success.items()],
    }


def _verdict(gain: Mapping[str, Any]) -> str:
    low, high = gain["ci95"]
    if low > 0:
        return "a gain"
    return "a loss" if high < 0 else "not distinguishable from no change"


def hallucinated(replayed: Mapping[str, Any], closed: Mapping[str, Any]) -> dict[str, Any] | None:
    """{world, acting, replaying}: errors of the newest world model from first frames, none where nothing is measured.

    `acting` is the last policy in closed loop, `replaying` all held-out episodes; either is none where it is missing.
    """
    worlds = closed.get("worlds", {})
    newest = next((world for world in reversed(WORLDS) if world in replayed or world in worlds), None)
    if newest is None:
        return None
    by_policy = worlds.get(newest, {}).get(FIRST_FRAME, {}).get("by_policy", {})
    by_start = [found["by_start"] for found in replayed.get(newest, {}).values()]
    starts = [found[FIRST_FRAME] for found in by_start if FIRST_FRAME in found]
    acting = [*by_policy.values()][-1] if by_policy else None
    replaying = _together(starts).to_dict() if starts else None
    return {"world": WORLDS[newest], "acting": acting, "replaying": replaying} if acting or replaying else None


def _together(found: list[Mapping[str, Any]]) -> Confusion:
    """Episodes of all purposes."""
    return Confusion(**{name: sum(one["counts"][name] for one in found) for name in found[0]["counts"]})
