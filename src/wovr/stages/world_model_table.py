"""What `world_model_eval` measured as a table in the manner of the paper's Tables 1 and 4: Markdown, or cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORLDS = {"base": "base world model", "pace": "after PACE"}
"""World models that are measured, in the order in which they are made."""
MEASURES = {
    "psnr": ("PSNR ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "lpips": ("LPIPS ↓", 3),
    "fid": ("FID ↓", 2),
    "fvd": ("FVD ↓", 2),
    "flolpips": ("FloLPIPS ↓", 3),
}
"""Title and digits of each column, in the paper's order."""


def header(summary: Mapping[str, Any]) -> list[str]:
    """Titles of the columns: those of the measures that were taken."""
    titles = [MEASURES[name][0] for name in _measures(summary)]
    return ["World model", "Episodes", "Rollout", "n", "FPS ↑", *titles]


def rows(summary: Mapping[str, Any], *, brief: bool = False) -> list[list[str]]:
    """Cells by world model, episodes and horizon, the longest first as in the paper; `brief` ones have no intervals."""
    return [
        [
            world if brief else WORLDS[world],
            purpose,
            horizon,
            str(row["n"]),
            "–" if found["fps"] is None else f"{found['fps']:.1f}",
            *(_cell(row[name], MEASURES[name][1], brief) for name in _measures(summary)),
        ]
        for world, found in summary["worlds"].items()
        for purpose, of in found["episodes"].items()
        for horizon, row in sorted(of["horizons"].items(), key=lambda item: -int(item[0]))
    ]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What one must know to read the numbers, a sentence each."""
    said = [
        "Imagined chunk by chunk under recorded actions from the first frame of held-out episodes; no later true "
        "frame is seen. Rollout: env steps. n: episodes of at least that length.",
        "In brackets: 95 % bootstrap intervals of the mean over episodes.",
        f"FPS: imagined frames per second, world model and decoder, batch {summary['settings']['batch_size']}, "
        f"{summary['precision']}, {summary['hardware']}.",
    ]
    if summary["left_out"]:
        said.append(f"Left out, no held-out episode is so long: {', '.join(map(str, summary['left_out']))}.")
    return said


def markdown(summary: Mapping[str, Any]) -> str:
    """The table with its notes."""
    titles = header(summary)
    lines = [titles, ["---"] * 2 + ["---:"] * (len(titles) - 2), *rows(summary)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# World model\n\n{table}\n\n" + "\n".join(f"- {note}" for note in notes(summary)) + "\n"


def _measures(summary: Mapping[str, Any]) -> list[str]:
    return [name for name in MEASURES if name in ("psnr", "ssim") or name in summary["settings"]["metrics"]]


def _cell(value: Mapping[str, Any] | float | None, digits: int, brief: bool) -> str:
    if value is None:
        return "–"
    if not isinstance(value, Mapping):
        return f"{value:.{digits}f}"
    mean, ci95 = f"{value['mean']:.{digits}f}", value["ci95"]
    return f"{mean} [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]" if ci95 and not brief else mean
