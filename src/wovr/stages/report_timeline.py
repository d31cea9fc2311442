"""When a run did what, and what it cost in true rollouts, for its report."""

from __future__ import annotations

from typing import Any

from wovr.core.log import read_records
from wovr.core.run import LEDGER, RunFolder
from wovr.stages.pipeline import STAGES

BEFORE = "pretraining"
"""Purpose of rollouts that were spent before the run."""
PURPOSES = {
    "demonstrations": "shown to the base policy",
    BEFORE: "before the run: undirected play that the pretrained world model has seen; no task, no success labels",
    "collect": "of the base policy, for world model and reward",
    "online": "of RL in the simulator",
    "evaluation": "measures alone; nothing learns from them",
}
"""What rollouts were for, in the words of a reader."""


def timeline(folder: RunFolder) -> dict[str, Any]:
    """{rows, seconds, purposes}: stages in order with their share of the time, and the ledger by purpose."""
    stages = {name: one for name, one in folder.stages().items() if name != "report"}
    names = sorted(stages, key=lambda name: list(STAGES).index(name) if name in STAGES else len(STAGES))
    total = sum(one["seconds"] for one in stages.values()) or 1.0
    spent: dict[str, int] = {}
    for line in read_records(folder.path / LEDGER):
        if line["purpose"] != BEFORE:
            spent[_stage(line["stage"])] = spent.get(_stage(line["stage"]), 0) + line["episodes"]
    rows, before = [], 0.0
    for name in names:
        seconds = stages[name]["seconds"]
        rows.append(
            {
                "name": name.replace("_", " "),
                "command": STAGES[name].command if name in STAGES else name,
                "seconds": seconds,
                "from": 100 * before / total,
                "share": 100 * seconds / total,
                "episodes": spent.get(name, 0),
            }
        )
        before += seconds
    ledger = folder.ledger()
    most = max((cost["episodes"] for cost in ledger.values()), default=1) or 1
    purposes = [
        {"name": name, "meaning": _meaning(name), "share": 100 * cost["episodes"] / most, "lost": 0, **cost}
        for name, cost in ledger.items()
    ]
    return {"rows": rows, "seconds": before, "purposes": purposes}


def _stage(name: str) -> str:
    """The stage that a line of the ledger belongs to: `refine-1/rl/alarm` is part of `refine`."""
    return "sft" if name == "demonstrations" else name.split("/")[0].split("-")[0]


def _meaning(purpose: str) -> str:
    return PURPOSES.get(purpose, "of the better policy, for PACE" if purpose.startswith("refine-") else "")
