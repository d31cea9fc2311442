"""What code runs: the versions that can change results, and the commit where it runs from a checkout."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

UNKNOWN = "unknown"


@cache
def source() -> dict[str, str]:
    """{wovr, commit, torch, python}; `commit` is UNKNOWN outside a checkout and has `-dirty` where files differ."""
    return {
        "wovr": importlib.metadata.version("wovr"),
        "commit": commit(Path(__file__).parents[1]),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit(package: Path) -> str:
    """Commit of the checkout that holds `package`. A repository that only happens to lie around it does not count."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return UNKNOWN
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or UNKNOWN


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, None where it fails or there is none."""
    try:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
