"""The report of a run: one HTML file that needs nothing else, its numbers as JSON, and a strip for a README.

A part whose stage has not run yet is left out, with a line that says which command makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup

from wovr.core.checkpoint import read_json, write_atomic, write_json, write_text
from wovr.core.log import read_records
from wovr.core.progress import duration
from wovr.core.run import RunFolder
from wovr.core.types import StartState
from wovr.envs.recorded import RecordedConfig
from wovr.imagine.load import BANK
from wovr.kir.bank import KeyframeBank
from wovr.stages import (
    action_following,
    action_following_table,
    closed_loop,
    compare_reward,
    compare_reward_table,
    hallucination,
    hallucination_table,
    world_model_eval,
    world_model_table,
)
from wovr.stages.curves import curves
from wovr.stages.evaluate import TRUE, paired
from wovr.stages.experiment import Workplace
from wovr.stages.pictures import png, still, strip
from wovr.stages.plots import intervals, lines
from wovr.stages.replay import Replay, load_replays
from wovr.stages.report_headline import POLICIES, facts, hallucinated, headline, policy_labels
from wovr.stages.report_player import best, player, success_rule
from wovr.stages.report_provenance import provenance
from wovr.stages.report_timeline import timeline

REPORT, SUMMARY, STRIP = Path("report/report.html"), Path("report/summary.json"), Path("report/strip.png")
TEMPLATES = Path(__file__).parent / "templates"
GALLERY = 24
"""Keyframes shown of each bank."""


def run(place: Workplace) -> dict[str, Any]:
    """Write `report/report.html`, `report/summary.json` and, where there are replays, `report/strip.png`."""
    folder, online = place.run, place.experiment.rl.simulator
    evaluation = _evaluation(folder.path)
    summary = _summary(folder, evaluation)
    replays = _replays(folder.path)
    judged = summary["compare_reward"]
    rule = success_rule(judged, place.experiment.reward.judge)
    world = next((found["world"] for found in evaluation.values()), TRUE)
    text = _template().render(
        name=folder.path.resolve().name,
        summary=summary,
        online=online,
        recorded=isinstance(place.experiment.simulator, RecordedConfig),
        headline=headline(summary, world, online=online),
        hallucinated=hallucinated(summary["hallucination"], summary["closed_loop"]),
        facts=facts(folder, place.experiment),
        policies=policy_labels(online),
        tasks=_tasks(evaluation),
        curves=curves(read_records(folder.path / "metrics.jsonl"), online=online),
        hallucination=hallucination_table.replayed_rows(summary["hallucination"]),
        error_plots=hallucination_table.error_plots(summary["hallucination"]),
        depth_plots=hallucination_table.depth_plots(summary["hallucination"]),
        closed=hallucination_table.closed_rows(summary["closed_loop"]),
        closed_plots=hallucination_table.closed_plots(summary["closed_loop"]),
        videos=_videos(summary["world_model"]),
        following=_following(summary["action_following"]),
        judges=_judges(judged),
        rule=rule,
        player=player(replays, rule),
        strip=still(strip(best(replays))) if replays else None,
        keyframes=_keyframes(folder.path),
        timeline=timeline(folder),
        config=yaml.safe_dump(folder.config, sort_keys=False),
        stages={name: json.dumps(stage["summary"], indent=2) for name, stage in folder.stages().items()},
        provenance=provenance(folder, place.experiment),
    )
    write_text(folder.path / REPORT, text)
    write_json(folder.path / SUMMARY, summary)
    if replays:
        _write_bytes(folder.path / STRIP, png(strip(best(replays))))
    return {"html": str(REPORT), "bytes": len(text.encode())}


def _summary(folder: RunFolder, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers of the report."""
    return {
        "success": {
            name: {key: found["success"][key] for key in ("rate", "n", "ci95")} for name, found in evaluation.items()
        },
        "paired": _paired(evaluation),
        "ledger": folder.ledger(),
        "seconds": _seconds(folder),
        "hallucination": _json(folder.path / hallucination.SUMMARY),
        "closed_loop": _json(folder.path / closed_loop.SUMMARY),
        "world_model": _json(folder.path / world_model_eval.SUMMARY),
        "action_following": _json(folder.path / action_following.SUMMARY),
        "compare_reward": _json(folder.path / compare_reward.SUMMARY),
    }


def _write_bytes(path: Path, content: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, interval=_interval, points=_points, count=_count, duration=duration)
    environment.globals["file"] = lambda name: Markup((TEMPLATES / name).read_text())  # of our own, not to be escaped
    return environment.get_template("report.html.j2")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _points(share: float) -> str:
    """A difference of shares, with a true minus sign."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _count(number: int) -> str:
    """With thin spaces between thousands."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _interval(ci95: tuple[float, float]) -> str:
    return f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}".replace("-", "\N{MINUS SIGN}")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _evaluation(run: Path) -> dict[str, dict[str, Any]]:
    """What `eval` wrote, for every policy that it measured."""
    found = {name: _json(run / "eval" / f"{name}.json") for name in POLICIES}
    return {name: content for name, content in found.items() if content}


def _paired(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"b_minus_a": paired difference} of every two policies, over the episodes that both have."""
    names = list(evaluation)
    pairs = {}
    for a, b in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        difference = paired(evaluation[a]["episodes"], evaluation[b]["episodes"])
        if difference:
            pairs[f"{b}_minus_{a}"] = difference.to_dict()
    return pairs


def _tasks(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{instruction: {policy: rate}}."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, found in evaluation.items():
        for instruction, rate in found["tasks"].items():
            tasks.setdefault(instruction, {})[name] = rate
    return tasks


def _seconds(folder: RunFolder) -> dict[str, float]:
    """Per stage, without the report itself, and `total`."""
    seconds = {name: stage["seconds"] for name, stage in folder.stages().items() if name != "report"}
    return {**seconds, "total": round(sum(seconds.values()), 3)}


def _videos(measured: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Titles, cells and notes of the table of imagined videos."""
    if not measured:
        return None
    table = world_model_table
    return {"header": table.header(measured), "rows": table.rows(measured), "notes": table.notes(measured)}


def _following(measured: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Sentences, plots and details of what changed actions do; none where nothing could be measured."""
    table = action_following_table
    if not measured or not table.verdicts(measured):
        return None
    plots = [
        intervals(values, title=title, x="growth of the error") for title, values in table.points(measured).items()
    ]
    return {"verdicts": table.verdicts(measured), "plots": plots, "details": table.details(measured)}


def _judges(measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Calibration curves, rows and a note about the reward models; none where nothing could be measured."""
    table = compare_reward_table
    if not table.details(measured):
        return None
    plots = [
        lines(series, title=title, x="success probability, %", y="true successes, %", percent=True)
        for title, series in table.curves(measured).items()
    ]
    return {"plots": plots, "rows": table.details(measured), "note": table.NOTE}


def _replays(run: Path) -> list[Replay]:
    path = run / hallucination.EXAMPLES
    return load_replays(path) if path.is_file() else []


def _keyframes(run: Path) -> list[dict[str, Any]]:
    """A gallery for every bank of the run, those of refinement after the first."""
    rounds = sorted((run / "refine").glob("round_*"), key=lambda folder: (len(folder.name), folder.name))
    banks = {"Failures of the base policy": run / BANK}
    banks |= {f"Failures in PACE {folder.name.replace('_', ' ')}": folder / BANK for folder in rounds}
    galleries = []
    for name, path in banks.items():
        if path.is_file():
            bank = KeyframeBank.load(path)
            shown = [{"source": still(start.memory_MHWC[-1]), "start": start} for start in _chosen(bank.keyframes)]
            galleries.append({"name": name, "reasons": bank.reasons(), "shown": shown})
    return galleries


def _chosen(keyframes: KeyframeBank) -> list[StartState]:
    """At most GALLERY of them, as many of each reason, evenly spaced: rare reasons are to be seen too."""
    found = []
    reasons = keyframes.reasons()
    for reason in reasons:
        starts = keyframes.select(reason=reason).starts
        places = np.linspace(0, len(starts) - 1, min(len(starts), max(1, GALLERY // len(reasons))))
        found += [starts[i] for i in places.round().astype(int)]
    return found
