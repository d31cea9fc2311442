"""The report of a run: one HTML file that needs nothing else, its numbers as JSON, and a strip for a README.

A part whose stage has not run yet is left out, with a line that says which command makes it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from markupsafe import Markup

from wovr.core.checkpoint import read_json, write_atomic, write_json, write_text
from wovr.core.dist import precision
from wovr.core.hardware import processor
from wovr.core.log import read_records
from wovr.core.run import RunFolder
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
from wovr.stages.pictures import animation, data_uri, png, strip
from wovr.stages.pipeline import duration
from wovr.stages.plots import Series, intervals, lines
from wovr.stages.replay import Replay, load_replays
from wovr.stages.world_model_table import WORLDS

REPORT, SUMMARY, STRIP = Path("report/report.html"), Path("report/summary.json"), Path("report/strip.png")
POLICIES = {"base": "base policy", "imagination": "after RL in imagination", "pace": "after PACE"}
"""Policies that `eval` measures, in the order in which they are made."""
OUTCOMES = {
    "both_succeed": "both succeed",
    "both_fail": "both fail",
    "false_success": "false success: imagined, not true",
    "false_failure": "false failure: true, not imagined",
}
GALLERY = 24
"""Keyframes shown."""


def run(place: Workplace) -> dict[str, Any]:
    """Write `report/report.html`, `report/summary.json` and, where there are replays, `report/strip.png`."""
    folder = place.run
    evaluation = _evaluation(folder.path)
    measured = _json(folder.path / hallucination.SUMMARY)
    closed = _json(folder.path / closed_loop.SUMMARY)
    videos = _json(folder.path / world_model_eval.SUMMARY)
    following = _json(folder.path / action_following.SUMMARY)
    judged = _json(folder.path / compare_reward.SUMMARY)
    replays = _replays(folder.path)
    summary = {
        "success": {
            name: {key: found["success"][key] for key in ("rate", "n", "ci95")} for name, found in evaluation.items()
        },
        "paired": _paired(evaluation),
        "ledger": folder.ledger(),
        "seconds": _seconds(folder),
        "hallucination": measured,
        "closed_loop": closed,
        "world_model": videos,
        "action_following": following,
        "compare_reward": judged,
    }
    text = _template().render(
        name=folder.path.resolve().name,
        summary=summary,
        policies=POLICIES,
        world=next((found["world"] for found in evaluation.values()), TRUE),
        success_plot=_success_plot(evaluation),
        tasks=_tasks(evaluation),
        curves=curves(read_records(folder.path / "metrics.jsonl")),
        hallucination=_hallucination_rows(measured),
        depths=_depth_plots(measured),
        closed=hallucination_table.closed_rows(closed),
        closed_plots=hallucination_table.closed_plots(closed),
        videos=_videos(videos),
        following=_following(following),
        judges=_judges(judged),
        replays=[_shown(replay) for replay in replays],
        keyframes=_keyframes(folder.path),
        config=yaml.safe_dump(folder.config, sort_keys=False),
        stages={name: json.dumps(stage["summary"], indent=2) for name, stage in folder.stages().items()},
        provenance=_provenance(folder.config),
    )
    write_text(folder.path / REPORT, text)
    write_json(folder.path / SUMMARY, summary)
    if replays:
        _write_bytes(folder.path / STRIP, png(strip(_best(replays))))
    return {"html": str(REPORT), "bytes": len(text.encode())}


def _write_bytes(path: Path, content: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, interval=_interval, duration=duration)
    return environment.get_template("report.html.j2")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _interval(ci95: tuple[float, float]) -> str:
    return f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}"


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


def _success_plot(evaluation: Mapping[str, Any]) -> Markup | None:
    rates = {
        POLICIES[name]: (found["success"]["rate"], *found["success"]["ci95"]) for name, found in evaluation.items()
    }
    return intervals(rates, title="Success with 95 % intervals") if rates else None


def _seconds(folder: RunFolder) -> dict[str, float]:
    """Per stage, without the report itself, and `total`."""
    seconds = {name: stage["seconds"] for name, stage in folder.stages().items() if name != "report"}
    return {**seconds, "total": round(sum(seconds.values()), 3)}


def _hallucination_rows(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per world model, purpose of the replayed episodes and kind of start."""
    return [
        {"world": WORLDS[world], "purpose": purpose, "start": kind.replace("_", " "), **found}
        for world, by_purpose in measured.items()
        for purpose, report in by_purpose.items()
        for kind, found in report["by_start"].items()
    ]


def _depth_plots(measured: Mapping[str, Any]) -> list[Markup]:
    """Error by depth, for each purpose: world models by colour, keyframes dashed."""
    purposes = dict.fromkeys(purpose for by_purpose in measured.values() for purpose in by_purpose)
    return [
        lines(
            [
                Series(
                    f"{WORLDS[world]}, {kind.replace('_', ' ')}",
                    range(1, len(found[key]) + 1),
                    found[key],
                    dashed=kind == "keyframe",
                    colour=list(WORLDS).index(world),
                )
                for world, by_purpose in measured.items()
                for kind, found in by_purpose.get(purpose, {"by_start": {}})["by_start"].items()
                if key in found  # a run that was measured by an older version has no gap
            ],
            title=f"{title} by depth, actions of {purpose}",
            x="imagined chunk",
            y=unit,
        )
        for purpose in purposes
        for key, title, unit in (
            ("psnr_by_depth", "PSNR", "dB"),
            ("gap_by_depth", "Gap in success probability", "imagined from true"),
        )
    ]


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


def _best(replays: list[Replay]) -> Replay:
    """A replay in which both succeed, if there is one: it shows the whole task."""
    return next((replay for replay in replays if replay.outcome == "both_succeed"), replays[0])


def _shown(replay: Replay) -> dict[str, str]:
    """Address and caption of an animation."""
    steps = len(replay.probability_T)
    times = [
        f"{world} after {first + 1} steps" if first < steps else f"{world} never"
        for world, first in (("true", replay.true_first), ("imagined", replay.imagined_first))
    ]
    return {
        "source": data_uri(animation(replay), "webp"),
        "instruction": replay.instruction,
        "outcome": replay.outcome,
        "label": OUTCOMES[replay.outcome],
        "times": f"Success: {', '.join(times)}",
        "origin": f"{replay.episode}, from step {replay.step}",
    }


def _keyframes(run: Path) -> list[dict[str, Any]]:
    """A gallery for every bank of the run, those of refinement after the first."""
    rounds = sorted((run / "refine").glob("round_*"), key=lambda folder: (len(folder.name), folder.name))
    banks = {"Failures of the base policy": run / BANK}
    banks |= {f"Failures in PACE {folder.name.replace('_', ' ')}": folder / BANK for folder in rounds}
    galleries = []
    for name, path in banks.items():
        if path.is_file():
            bank = KeyframeBank.load(path)
            starts = bank.keyframes.starts
            chosen = np.unique(np.linspace(0, len(starts) - 1, min(len(starts), GALLERY)).round().astype(int))
            shown = [{"source": data_uri(png(starts[i].memory_MHWC[-1]), "png"), "start": starts[i]} for i in chosen]
            galleries.append({"name": name, "reasons": bank.reasons(), "shown": shown})
    return galleries


def _provenance(config: Mapping[str, Any]) -> dict[str, str]:
    """What made the run, and the machine that this report was made on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "wovr": importlib.metadata.version("wovr"),
        "seed": str(config.get("seed")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "GPU": device,
        "precision": precision("auto"),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
