"""Suites, their tasks and their initial states, read from hf-libero's files without importing it."""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.types import Task
from wovr.envs.libero.install import find_package
from wovr.episodes.libero_names import libero_task_names, task_language


@dataclass(frozen=True, slots=True)
class Suite:
    """What is known of a suite before hf-libero is installed."""

    tasks: int
    """How many it has."""
    horizon: int
    """Env steps that published evaluations allow; the longest demonstrations take 193, 254, 270, 505 and 373."""


SUITES = {
    "libero_spatial": Suite(10, 220),
    "libero_object": Suite(10, 280),
    "libero_goal": Suite(10, 300),
    "libero_10": Suite(10, 520),
    "libero_90": Suite(90, 400),
}


def check_suite(name: str) -> str:
    """`name` if it is a suite; ValueError with the nearest names otherwise."""
    if name not in SUITES:
        raise ValueError(f"expected a LIBERO suite{_nearest(name, list(SUITES))}")
    return name


@cache
def task_map() -> dict[str, list[str]]:
    """Task names by suite, in hf-libero's order; UserError where it is not installed."""
    find_package()
    return {suite: libero_task_names(suite) for suite in SUITES}


def task_numbers(suites: dict[str, list[str]], suite: str, names: Sequence[str]) -> list[int]:
    """Numbers of the tasks named, or of all; ValueError with the nearest names for one that the suite lacks."""
    known = suites[suite]
    for name in names:
        if name not in known and not (name.isdigit() and int(name) < len(known)):
            raise ValueError(f"expected a task of {suite} or a number below {len(known)}{_nearest(name, known)}")
    return [int(name) if name.isdigit() else known.index(name) for name in names] or list(range(len(known)))


def load_tasks(suite: str, names: Sequence[str]) -> list[Task]:
    """The tasks named, or all of the suite; UserError for a name that it lacks.

    Instructions are those of the task names, which published data and policies use; the task files word some otherwise.
    """
    suites = task_map()
    try:
        numbers = task_numbers(suites, suite, names)
    except ValueError as error:
        raise UserError(f"key 'tasks': {error}") from None
    return [Task(number, name := suites[suite][number], task_language(name)) for number in numbers]


def task_file(suite: str, name: str) -> Path:
    """The task's definition."""
    return find_package() / "bddl_files" / suite / f"{name}.bddl"


def load_initial_states(suite: str, name: str) -> NDArray[np.float64]:
    """(N, S) the task's shipped initial states. Nothing in the file is executed: UserError if it holds code."""
    return read_states(find_package() / "init_files" / suite / f"{name}.pruned_init")


def read_states(path: Path) -> NDArray[np.float64]:
    """(N, S) simulator states of a file that `torch.save` wrote of a NumPy array."""
    import torch

    reconstruct = np.zeros(0).__reduce__()[0]
    # Files name the function by where the NumPy that wrote them had it.
    allowed: list[Any] = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    allowed += [np.ndarray, np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            states = torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        found = f"a reference to {foreign[1]}" if foreign else "no array"
        raise UserError(f"{path}: expected initial states as a NumPy array, found {found}") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: expected initial states, found {str(error).splitlines()[0]}") from None
    if not isinstance(states, np.ndarray) or states.ndim != 2 or states.dtype != np.float64:
        raise UserError(f"{path}: expected a float64 array of states by numbers, found {type(states).__name__}")
    return states


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; nearest: {', '.join(close)}" if close else f"; known: {', '.join(known[:10])}"
