"""What a machine has and lacks, one line per check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wovr.stages.doctor import Check, survey
from wovr.stages.pipeline import load_experiment

STYLES = {"ok": "green", "missing": "bold red", "optional missing": "yellow"}


def print_checks(config: Path, overrides: Iterable[str], run: Path) -> bool:
    """Look, and print what was found; whether the experiment can run here."""
    with Console(stderr=True).status("looking at this machine, up to a minute ..."):
        checks = survey(partial(load_experiment, config, tuple(overrides)), run)
    console = Console(highlight=False)
    table = _table(checks)
    if not console.is_terminal:  # nothing is wrapped: one line stays one for grep
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    stopping = [check.name for check in checks if check.stops]
    verdict = f"cannot run here before this is mended: {', '.join(stopping)}." if stopping else "can run here."
    console.print(f"{config} {verdict}", markup=False, soft_wrap=True)
    return not stopping


def _table(checks: Sequence[Check]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in ("mark", "name"):
        table.add_column(column, no_wrap=True)
    table.add_column("text", overflow="fold")
    for check in checks:
        mark, mend = mark_of(check), f"mend: {check.mend}" if check.mend else ""
        text = "; ".join(filter(None, (check.found, check.problem, mend)))
        table.add_row(Text(mark, STYLES[mark]), Text(check.name), Text(text))
    return table


def mark_of(check: Check) -> str:
    """In words."""
    if not check.problem:
        return "ok"
    return "missing" if check.needed else "optional missing"
