"""What a finished run came to, on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wovr.stages.pipeline import duration

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
    from wovr.core.checkpoint import read_json
    from wovr.stages import closed_loop, hallucination
    from wovr.stages.hallucination_table import HEADER, NOTE, rows

    found = [
        read_json(run.path / summary) if (run.path / summary).is_file() else {}
        for summary in (hallucination.SUMMARY, closed_loop.SUMMARY)
    ]
    if not any(found):
        return
    table = Table(title="Hallucination: imagined beside true success", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for number, column in enumerate(HEADER):
        table.add_column(column, justify="left" if number < 3 else "right")
    for row in rows(*found):
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(NOTE, soft_wrap=True)


def print_world_model(run: RunFolder) -> None:
    """The table of `world_model_eval`, where it has been measured."""
    from wovr.core.checkpoint import read_json
    from wovr.stages.world_model_eval import SUMMARY, TABLE
    from wovr.stages.world_model_table import header, notes, rows

    if not (run.path / SUMMARY).is_file():
        return
    summary = read_json(run.path / SUMMARY)
    # All columns side by side fill 80 characters.
    table = Table(title="World model: imagined videos beside true ones", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for number, column in enumerate(header(summary)):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in rows(summary, brief=True):
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(*notes(summary)[2:], sep="\n", soft_wrap=True)
    console.print(f"With intervals: {run.path / TABLE}", soft_wrap=True)


def print_actions(run: RunFolder) -> None:
    """The table of `action_following`, where it has been measured."""
    from wovr.core.checkpoint import read_json
    from wovr.stages.action_following import SUMMARY
    from wovr.stages.action_following_table import HEADER, NOTE, rows

    if not (run.path / SUMMARY).is_file():
        return
    table = Table(title="World model: does it follow its actions?", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for number, column in enumerate(HEADER):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in rows(read_json(run.path / SUMMARY)):
        table.add_row(*row, style="" if row[HEADER.index("Follows")] == "yes" else "bold red")
    console = Console(highlight=False)
    console.print(table)
    console.print(NOTE, soft_wrap=True)


def print_reward(run: RunFolder) -> None:
    """The table of `compare_reward`, where it has been measured."""
    from wovr.core.checkpoint import read_json
    from wovr.stages.compare_reward import SUMMARY
    from wovr.stages.compare_reward_table import HEADER, NOTE, rows

    if not (run.path / SUMMARY).is_file():
        return
    table = Table(title="Reward models: how good are they?", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for number, column in enumerate(HEADER):
        table.add_column(column, justify="left" if number < 4 else "right")
    for row in rows(read_json(run.path / SUMMARY)):
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(NOTE, soft_wrap=True)


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
