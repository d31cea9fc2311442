"""What an experiment takes, on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from wovr.core.progress import duration

if TYPE_CHECKING:
    from wovr.stages.plan import Advice, Plan
    from wovr.stages.plan_parts import StagePlan

GB = 1e9
KINDS = {"weights": "weights", "gradients": "grads", "optimizer": "optim.", "activations": "activ.", "caches": "caches"}
"""Of memory, and their columns."""
WIDEST = 160


def print_plan(plan: Plan, advice: Advice | None) -> None:
    """One row per stage at its peak, what is assumed, and whether it fits; `advice` where it does not."""
    console = Console(highlight=False)
    table = _table(plan)
    console.width = max(console.width, console.measure(table, options=console.options.update(width=WIDEST)).maximum)
    console.print(table)
    for line in plan.machine.assumptions:
        console.print(f"- {line}", style="dim")
    console.print(verdict(plan, advice), soft_wrap=True)


def _table(plan: Plan) -> Table:
    machine = plan.machine
    where = f"{machine.gpus} GPU{'s' * (machine.gpus > 1)}, {machine.memory / GB:g} GB each" if machine.gpus else "CPU"
    ways = f", ZeRO {machine.zero}" * bool(machine.zero) + ", states on the host" * machine.offload
    table = Table(
        title=f"{where}{ways}: GB of one process at each stage's peak", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("stage", "peak at"):
        table.add_column(column, no_wrap=True)
    for column in ("trained", *KINDS.values(), "total", "host", "PFLOP", "disk", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(*_row(stage))
    table.add_section()
    disk, flops = (sum(getattr(stage, name) for stage in plan.stages) for name in ("disk", "flops"))
    seconds = sum(stage.seconds for stage in plan.stages)
    table.add_row("all", *[""] * 8, "", _number(flops / 1e15), _gb(disk), _time(seconds))
    return table


def _row(stage: StagePlan) -> list[str]:
    memory, trained = stage.largest.memory, sum(stage.parameters.values())
    count = "" if not trained else f"{trained / 1e9:.2f} B" if trained >= 1e9 else f"{trained / 1e6:.1f} M"
    kinds = [_gb(getattr(memory, kind)) for kind in KINDS]
    return [
        stage.name,
        stage.largest.name,
        count,
        *kinds,
        _gb(memory.total),
        _gb(stage.host),
        _number(stage.flops / 1e15),
        _gb(stage.disk),
        _time(stage.seconds),
    ]


def verdict(plan: Plan, advice: Advice | None) -> str:
    """Whether it fits, by how much, and what to change."""
    tightest, machine = plan.tightest, plan.machine
    part = max(tightest.parts, key=plan.part_needs)
    where = f"{tightest.name} ({part.name}) takes {plan.part_needs(part) / GB:.1f} of {machine.usable / GB:.1f} GB"
    host = f"; {max(stage.host for stage in plan.stages) / GB:,.0f} GB of host memory" if machine.gpus else ""
    if advice is None:
        return f"Fits: {where}{host}."
    then = advice.plan
    best = f"{then.needs(then.tightest) / GB:.1f} GB, in {then.tightest.name}"
    hosted = f", and {max(stage.host for stage in then.stages) / GB:,.0f} GB of host memory" if machine.gpus else ""
    others = [stage.name for stage in plan.too_large if stage is not tightest]
    also = f", and {', '.join(others)} too much as well" if others else ""
    if then.too_large:
        return f"Does not fit: {where}{also}. Nothing known here helps enough: {advice} still takes {best}."
    return f"Does not fit: {where}{also}.\nFits with: {advice}\nThat takes {best}{hosted}."


def _gb(size: float) -> str:
    return _number(size / GB) if size else ""


def _number(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.01 else 3
    return f"{value:,.{digits}f}"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds < 3600 else f"{_number(seconds / 3600)} h"
