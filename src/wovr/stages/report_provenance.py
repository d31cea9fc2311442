"""What made a run, for its report: code, versions, seeds, and the hashes of what it started from and came to.

Stages write down the code that ran them as they finish; what an older run did not write down is unknown, not guessed.
Hashes are taken when the report is written, of the files as they are then.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from wovr.core.dist import precision
from wovr.core.hardware import processor
from wovr.core.run import RunFolder
from wovr.core.source import UNKNOWN, source
from wovr.stages.experiment import Experiment

ARTIFACTS = ("sft", "codec", "reward", "world_model", "keyframes", "rl", "refine")
"""Folders whose weights and start states are the run's results; steps on the way to them are left out."""
ON_THE_WAY = ("kept", "checkpoint")


def provenance(folder: RunFolder, experiment: Experiment) -> dict[str, Any]:
    """{code, page, inputs, artifacts} for the template."""
    return {
        "code": _code(folder),
        "page": _page(),
        "seed": experiment.seed,
        "inputs": [_described(str(file), file) for file in _inputs(experiment)],
        "artifacts": [_described(str(file.relative_to(folder.path)), file) for file in _artifacts(folder.path)],
    }


def _code(folder: RunFolder) -> list[dict[str, Any]]:
    """{stages, wovr, commit, torch, python} of each state of the code that ran stages, in their order."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, stage in folder.stages().items():
        if name != "report":
            found.setdefault(tuple(stage.get("source", {}).items()), []).append(name)
    unknown = {"wovr": folder.version, **dict.fromkeys(("commit", "torch", "python"), UNKNOWN)}
    return [{"stages": names, **unknown, **dict(code)} for code, names in found.items()]


def _page() -> dict[str, str]:
    """The code and the machine that wrote the page."""
    return {
        **source(),
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "precision": precision("auto"),
        "system": f"{platform.system()} {platform.machine()}",
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _inputs(experiment: Experiment) -> Iterator[Path]:
    """Every file that the run starts from; of a folder, all that lie in it."""
    policy = getattr(experiment.policy, "pretrained", None)
    for path in (policy, experiment.codec.pretrained, experiment.world_model.pretrained):
        if path is not None:
            yield from sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]


def _artifacts(run: Path) -> list[Path]:
    """Weights and start states, in the order of ARTIFACTS."""
    found = (file for name in ARTIFACTS for file in sorted((run / name).rglob("*.safetensors")))
    return [file for file in found if not any(part in ON_THE_WAY for part in file.relative_to(run).parts)]


def _described(name: str, file: Path) -> dict[str, str]:
    """Name, size and SHA-256 of a file, which may have been moved since the run."""
    if not file.is_file():
        return {"name": name, "size": "–", "sha256": "not there any more"}
    with file.open("rb") as content:
        return {
            "name": name,
            "size": f"{file.stat().st_size / 1e6:.1f} MB",
            "sha256": hashlib.file_digest(content, "sha256").hexdigest(),
        }
