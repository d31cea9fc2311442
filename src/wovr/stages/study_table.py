"""The study's tables and plots, from its finished cells.

Rates are of all episodes of all seeds, with intervals over episodes: they say how sure a rate is for these trained
policies, not what another seed would give, which the seeds' own rates show. Measures of videos are means over seeds,
and their differences have t intervals over seeds, wide as they are with three of them. A star marks cells that were run
with other settings than those of today.

Legend: S seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wovr.core.checkpoint import read_json, write_text
from wovr.metrics.success import Rate, paired_difference, t95
from wovr.stages.data import COLLECT
from wovr.stages.plots import intervals, standalone
from wovr.stages.study import StudyConfig, budget, digest, result_path
from wovr.stages.study_text import markdown, rate_text
from wovr.stages.study_trust import closed_loop_table, correlation_table, recorded_table

MARKS = "<!-- {name}: `make study` writes this -->", "<!-- end of {name} -->"
TRUST = {"closed_loop": closed_loop_table, "correlation": correlation_table, "recorded": recorded_table}
"""Tables of the plain cells alone, by the name in their marks."""
WORLD_HEADER = ("PSNR", "Agreement", "False success", "False failure", "Growth of error, other actions")

STAR = "*"
"""Beside a number of a cell of earlier settings."""

Cells = Mapping[str, list[dict[str, Any]]]
"""Finished cells by name, one for each seed that is there."""


def read_cells(config: StudyConfig, results: Path) -> Cells:
    """What is finished, `star` being what marks it."""
    found: dict[str, list[dict[str, Any]]] = {cell: [] for cell in config.cells}
    for cell, of in found.items():
        for seed in config.seeds:
            path = result_path(results, cell, seed)
            if path.is_file():
                read, now = read_json(path), digest(config.of(cell, seed), config.cells[cell].measure)
                of.append(read | {"star": "" if read["experiment"] == now else STAR})
    return found


def write_tables(config: StudyConfig, results: Path, document: Path) -> None:
    """Put the tables of all finished cells between their marks in `document`, and the plot beside its images."""
    cells = read_cells(config, results)
    text = document.read_text()
    for name in dict.fromkeys(cell.table for cell in config.cells.values()):
        titles = {key: cell.title for key, cell in config.cells.items() if cell.table == name and cells[key]}
        measure = {cell.measure for cell in config.cells.values() if cell.table == name}
        table = policy_table(config, cells, titles) if measure == {"policy"} else world_table(config, cells, titles)
        text = _between(text, [mark.format(name=name) for mark in MARKS], table)
    today = [cell for cell in cells[config.trusted or config.plain] if not cell["star"]]
    for name, table_of in TRUST.items():
        text = _between(text, [mark.format(name=name) for mark in MARKS], table_of(today))
    write_text(document, text)
    if policies(config, cells):
        write_text(document.parent / "images" / "study.svg", standalone(success_plot(config, cells)))


def _between(text: str, marks: list[str], content: str) -> str:
    """`text` with `content` between two marks; as it is where it lacks them."""
    pattern = re.compile(".*?".join(map(re.escape, marks)), re.DOTALL)
    return pattern.sub(lambda _: "\n".join([marks[0], content, marks[1]]), text)


def policies(config: StudyConfig, cells: Cells) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """{title: (policy, cells)}: what the plain cell passes through, and the last policy of every other."""
    plain = cells[config.plain]
    found = {"base policy": ("base", plain), f"{config.cells[config.plain].title}, before PACE": ("imagination", plain)}
    for name, cell in config.cells.items():
        if cell.measure == "policy" and cells[name]:
            found[cell.title] = (last_policy(cells[name][0]), cells[name])
    return found if plain else {}


def last_policy(cell: Mapping[str, Any]) -> str:
    """Name of a cell's final policy."""
    return next(name for name in ("pace", "imagination", "base") if name in cell["success"])


def policy_table(config: StudyConfig, cells: Cells, titles: Mapping[str, str]) -> str:
    """True success of what each variant ends with, and paired with that of the plain one."""
    rows = [["", "true success", "of each seed", "against the plain one, paired", "true rollouts to learn from"]]
    plain = cells[config.plain]
    for title, (policy, of) in policies(config, cells).items():
        if of is not plain and title not in titles.values():
            continue
        outcomes = np.concatenate([_outcomes(cell, policy) for cell in of])
        seeds = " / ".join(f"{100 * cell['success'][policy]['rate']:.1f}{cell['star']}" for cell in of)
        spent = sorted({budget(cell["ledger"], policy) for cell in of})
        difference = "" if (of, policy) == (plain, last_policy(plain[0])) else _paired(of, policy, plain)
        rows.append([title, rate_text(Rate.of(outcomes)), seeds, difference, ", ".join(map(str, spent))])
    return markdown(rows)


def world_table(config: StudyConfig, cells: Cells, titles: Mapping[str, str]) -> str:
    """Measures of the base world model on the base policy's held-out episodes, and differences from the plain one."""
    rows = [["", "seeds", *WORLD_HEADER]]
    plain = cells[config.plain]
    for name, title in {config.plain: config.cells[config.plain].title, **titles}.items():
        of = cells[name]
        if not of:
            continue
        pairs = [
            (cell, other) for cell in of for other in plain if other["seed"] == cell["seed"] and name != config.plain
        ]
        rows.append(
            [
                title,
                f"{len(of)}{max(cell['star'] for cell in of)}",
                _mean(of, pairs, _psnr, "{:.2f} dB", "{:+.2f}"),
                *(_pooled(of, key) for key in ("agreement", "false_success_rate", "false_failure_rate")),
                _mean(of, pairs, _growth, "{:+.0f}", "{:+.0f}"),
            ]
        )
    return markdown(rows)


def success_plot(config: StudyConfig, cells: Cells) -> Any:
    """Success of every policy with its interval, and that of each seed."""
    values, seeds = {}, {}
    for title, (policy, of) in policies(config, cells).items():
        rate = Rate.of(np.concatenate([_outcomes(cell, policy) for cell in of]))
        values[title] = (rate.rate, *rate.ci95)
        seeds[title] = [cell["success"][policy]["rate"] for cell in of]
    return intervals(values, title="True success, all seeds and each of them", left=2.4, parts=seeds)


def _outcomes(cell: Mapping[str, Any], policy: str) -> Any:
    return np.array([outcome == "1" for outcome in cell["success"][policy]["outcomes"]])


def _paired(of: list[dict[str, Any]], policy: str, plain: list[dict[str, Any]]) -> str:
    pairs = [(cell, other) for cell in of for other in plain if other["seed"] == cell["seed"]]
    if not pairs:
        return "–"
    ours = np.concatenate([_outcomes(cell, policy) for cell, _ in pairs])
    theirs = np.concatenate([_outcomes(other, last_policy(other)) for _, other in pairs])
    found = paired_difference(theirs, ours)
    low, high = found.ci95
    return f"{100 * found.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _measured(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(cell["hallucination"]["base"][COLLECT]["by_start"]["first_frame"])


def _psnr(cell: Mapping[str, Any]) -> float:
    horizons = cell["world_model"]["worlds"]["base"]["episodes"][COLLECT]["horizons"]
    return float(horizons[max(horizons, key=int)]["psnr"]["mean"])


def _growth(cell: Mapping[str, Any]) -> float:
    return float(cell["action_following"]["worlds"]["base"][COLLECT]["changes"]["shuffled"]["difference"]["mean"])


def _mean(
    of: list[dict[str, Any]],
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
    measure: Callable[[Mapping[str, Any]], float],
    shown: str,
    shown_difference: str,
) -> str:
    """Mean over seeds, and of the differences within a seed with their t interval."""
    text = shown.format(np.mean([measure(cell) for cell in of]))
    if not pairs:
        return text
    differences_S = np.array([measure(cell) - measure(other) for cell, other in pairs])
    text += f"; {shown_difference.format(differences_S.mean())}"
    if len(pairs) < 2:
        return text
    half = differences_S.std(ddof=1) / len(pairs) ** 0.5 * t95(len(pairs) - 1)
    ends = (shown_difference.format(differences_S.mean() + sign * half) for sign in (-1, 1))
    return f"{text} ({' to '.join(ends)})"


def _pooled(of: list[dict[str, Any]], key: str) -> str:
    """One rate over the episodes of all seeds."""
    rates = [_measured(cell)[key] for cell in of]
    return rate_text(Rate(sum(rate["successes"] for rate in rates), sum(rate["n"] for rate in rates)))
