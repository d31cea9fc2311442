"""What LIBERO's suites and tasks are called. Nothing of LIBERO is imported, and little else."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

SUITE = re.compile(r"libero_(?:spatial|object|goal|10|90)(?![0-9a-z])")


def task_language(name: str) -> str:
    """Instruction of LIBERO's task of that name: without the scene that names in libero_10 and libero_90 begin with."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


@cache
def libero_task_names(suite: str) -> list[str]:
    """Names of a suite's tasks by task id, from LIBERO where it is installed, otherwise []. Nothing of it is imported:
    its import asks a question and loads a simulator."""
    package = importlib.util.find_spec("libero")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "libero" / "benchmark" / "libero_suite_task_map.py"
        spec = importlib.util.spec_from_file_location("libero_suite_task_map", path)
        if path.is_file() and spec and spec.loader:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return list(module.libero_task_map.get(suite, []))
    return []
