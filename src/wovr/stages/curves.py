"""Learning curves of a run, from the lines of its metrics.jsonl."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from wovr.stages.plots import Series, lines, stacked

Record = Mapping[str, Any]
LOSSES = {
    "sft": "Base policy",
    "codec": "Codec",
    "reward": "Reward classifier",
    "world_model": "World model",
    "own_memory": "World model on its own memories",
    "decoder": "Decoder for imagined latents",
}
"""Stages that fit a network, in the order in which they are shown."""
VALIDATION = {
    "agreement": "success agrees",
    "false_success": "false success | true failure",
    "false_failure": "false failure | true success",
}


def curves(records: Sequence[Record], *, online: bool) -> list[Markup]:
    """Every curve that there are records for: RL first, in the simulator where `online`, then validation, losses."""
    found = []
    rl = rl_records(records)
    if rl:
        found += _rl_curves(rl, online=online)
    found += _alarm_curves(records)
    validated = [
        (title, [line for line in phase if "validation/agreement" in line])
        for stage in ("world_model", "own_memory")
        for number, phase in enumerate(phases(records, stage))
        for title in [f"{LOSSES[stage]}, held-out replays{_suffix(number)}"]
    ]
    found += [
        lines(
            [
                Series(label, _steps(phase), [line.get(f"validation/{key}") for line in phase])
                for key, label in VALIDATION.items()
            ],
            title=title,
            x="training step",
            y="%",
            percent=True,
        )
        for title, phase in validated
        if len(phase) > 1  # one look is no curve; the stage's summary has it
    ]
    for stage, title in LOSSES.items():
        series = [
            Series("first training" if number == 0 else f"PACE round {number}", _steps(phase), _values(phase, "loss"))
            for number, phase in enumerate(phases(records, stage))
        ]
        if series:
            found.append(lines(series, title=f"{title}: training loss", x="training step", y="loss"))
    return found


def phases(records: Sequence[Record], stage: str) -> list[list[Record]]:
    """The trainings that logged under one name, each in order of steps.

    A training that starts again at its first logged step is another one, as in refinement; one that goes back less far
    was resumed, and what it had logged after its checkpoint is replaced.
    """
    found: list[list[Record]] = []
    for line in records:
        if line["stage"] != stage:
            continue
        if not found or line["step"] <= found[-1][0]["step"]:
            found.append([])
        found[-1] = [*(old for old in found[-1] if old["step"] < line["step"]), line]
    return found


def rl_records(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Updates of every RL phase: `rl`, then `refine-1/rl` and so on. The last line of an update counts."""
    found: dict[str, dict[int, Record]] = {}
    for line in records:
        if re.fullmatch(r"rl|refine-\d+/rl", line["stage"]):
            found.setdefault(line["stage"], {})[line["step"]] = line
    return {stage: [by_step[step] for step in sorted(by_step)] for stage, by_step in found.items()}


def _rl_curves(rl: Mapping[str, Sequence[Record]], *, online: bool) -> list[Markup]:
    """One axis of updates over all phases."""
    success, entropy, apart = [], [], []
    x: list[float] = []
    dropped: dict[str, list[float]] = {"kept": [], "all failed": [], "all succeeded": []}
    for stage, phase in rl.items():
        updates = [len(x) + place for place in range(1, len(phase) + 1)]
        first = "RL in the simulator" if online else "RL in imagination"
        label = first if stage == "rl" else f"after PACE {_round(stage)}"
        success.append(Series(label, updates, _values(phase, "success")))
        entropy.append(Series(label, updates, _values(phase, "entropy")))
        apart.append(Series(label, updates, _values(phase, "kl_base")))
        x += updates
        for line in phase:
            failed, succeeded = line["groups_failed"], line["groups_succeeded"]
            dropped["kept"].append(line["groups"] - failed - succeeded)
            dropped["all failed"].append(failed)
            dropped["all succeeded"].append(succeeded)
    found = [
        lines(success, title="True success" if online else "Imagined success", x="update", y="%", percent=True),
        stacked(x, dropped, title="Groups: kept, or dropped for want of a signal", x_label="update", y="groups"),
    ]
    for series, title in ((entropy, "Policy entropy per action token"), (apart, "Divergence from the base policy")):
        if any(value is not None for one in series for value in one.y):  # an update without a signal has none
            found.append(lines(series, title=title, x="update", y="nats"))
    return found


def _alarm_curves(records: Sequence[Record]) -> list[Markup]:
    """What the alarm saw, one plot per phase of RL."""
    looks: dict[str, dict[int, Record]] = {}
    for line in records:
        if line["stage"].endswith("/alarm"):
            looks.setdefault(line["stage"].removesuffix("/alarm"), {})[line["step"]] = line
    return [
        lines(
            [
                Series(label, sorted(phase), [phase[step][key] for step in sorted(phase)])
                for key, label in (("imagined_rise", "in imagination"), ("true_rise", "in truth"))
            ],
            title=f"{'RL' if name == 'rl' else f'RL after PACE {_round(name)}'}: how far success has risen",
            x="update",
            y="points",
            percent=True,
        )
        for name, phase in looks.items()
    ]


def _round(name: str) -> str:
    """`1` of `refine-1/rl`."""
    return name.removeprefix("refine-").split("/")[0]


def _steps(phase: Sequence[Record]) -> list[float]:
    return [line["step"] for line in phase]


def _values(phase: Sequence[Record], key: str) -> list[float | None]:
    return [line.get(key) for line in phase]


def _suffix(number: int) -> str:
    return f", PACE round {number}" if number else ""
