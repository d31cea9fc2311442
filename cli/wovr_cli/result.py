"""What a finished run came to, on one screen."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wovr.core.progress import duration

if TYPE_CHECKING:
    from wovr.core.run import RunFolder


def print_result(run: RunFolder) -> None:
    """Success of each policy, the world model's videos, whether it follows its actions, how good its judges are, true
    rollouts by purpose, time, and where the report lies."""
    from wovr.stages.report import REPORT

    stages = run.stages()
    console = Console(highlight=False)
    console.print(success_table(stages["eval"]["summary"]))
    print_hallucination(run)
    print_world_model(run)
    print_actions(run)
    print_reward(run)
    spent = (
        f"{purpose} {total['episodes']}" + (f" and {total['lost']} lost" if "lost" in total else "")
        for purpose, total in run.ledger().items()
    )
    console.print(f"True rollouts: {', '.join(spent)}")
    console.print(f"Time: {duration(sum(stage['seconds'] for stage in stages.values()))} for all stages")
    console.print(f"Report: {run.path / REPORT}", soft_wrap=True)


def print_hallucination(run: RunFolder) -> None:
    """The table of `hallucination` and `closed_loop`, where they have been measured."""
    from wovr.stages import closed_loop, hallucination
    from wovr.stages.hallucination_table import HEADER, NOTE, rows

    found = [_read(run, summary) for summary in (hallucination.SUMMARY, closed_loop.SUMMARY)]
    if any(found):
        _print_table("Hallucination: imagined beside true success", HEADER, rows(*found), [NOTE], words=3)


def print_world_model(run: RunFolder) -> None:
    """The table of `world_model_eval`, where it has been measured."""
    from wovr.stages.world_model_eval import SUMMARY, TABLE
    from wovr.stages.world_model_table import header, notes, rows

    summary = _read(run, SUMMARY)
    if summary:
        said = [*notes(summary)[2:], f"With intervals: {run.path / TABLE}"]
        title = "World model: imagined videos beside true ones"
        _print_table(title, header(summary), rows(summary, brief=True), said, words=2)


def print_actions(run: RunFolder) -> None:
    """The table of `action_following`, where it has been measured."""
    from wovr.stages.action_following import SUMMARY
    from wovr.stages.action_following_table import HEADER, NOTE, rows

    summary = _read(run, SUMMARY)
    if summary:
        found, follows = rows(summary), HEADER.index("Follows")
        deaf = [number for number, row in enumerate(found) if row[follows] != "yes"]
        _print_table("World model: does it follow its actions?", HEADER, found, [NOTE], words=2, red=deaf)


def print_reward(run: RunFolder) -> None:
    """The table of `compare_reward`, where it has been measured."""
    from wovr.stages.compare_reward import SUMMARY
    from wovr.stages.compare_reward_table import HEADER, NOTE, rows

    summary = _read(run, SUMMARY)
    if summary:
        _print_table("Reward models: how good are they?", HEADER, rows(summary), [NOTE], words=4)


def _read(run: RunFolder, summary: Path) -> dict[str, Any]:
    """What a stage measured; nothing where it has not."""
    from wovr.core.checkpoint import read_json

    return read_json(run.path / summary) if (run.path / summary).is_file() else {}


def _print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    *,
    words: int,
    red: Container[int] = (),
) -> None:
    """A table whose first `words` columns are words, and the others numbers; `red` are rows to be seen first."""
    # All columns side by side fill 80 characters.
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
    for number, column in enumerate(header):
        table.add_column(column, justify="left" if number < words else "right")
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold red" if number in red else "")
    console = Console(highlight=False)
    console.print(table)
    console.print(*notes, sep="\n", soft_wrap=True)


def success_table(evaluation: dict[str, Any]) -> Table:
    """One row per policy of `eval`'s summary: rate, Wilson interval, paired difference to the base in points."""
    from wovr.stages.report import POLICIES

    table = Table(title=f"Success in {evaluation['world']}")
    for column in ("policy", "success", "95 % interval", "episodes", "against base"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for policy, title in POLICIES.items():
        if policy in evaluation:
            found, paired = evaluation[policy], evaluation.get(f"{policy}_minus_base")
            gain = f"{100 * paired['difference']:+.1f} points" if paired else ""
            table.add_row(title, f"{100 * found['rate']:.1f} %", _interval(found["ci95"]), str(found["n"]), gain)
    return table


def _interval(ci95: list[float]) -> str:
    low, high = (100 * end for end in ci95)
    return f"{low:.1f} to {high:.1f}"
