"""LIBERO on this machine: package, renderer, assets and the scenes of an experiment's tasks; part of `wovr doctor`."""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path

from wovr.core.errors import UserError
from wovr.core.types import SimulatorStart, Task
from wovr.envs.libero import Libero, LiberoConfig, install
from wovr.envs.libero.suites import load_tasks, task_file
from wovr.stages.doctor import Check, from_error, installed_version
from wovr.stages.experiment import SimulatorConfig

KEPT = "~/.cache/libero/assets"


def check_libero(simulator: SimulatorConfig) -> list[Check]:
    """Optional unless it is the simulator; scenes are started only then."""
    needed = isinstance(simulator, LiberoConfig)
    config = simulator if isinstance(simulator, LiberoConfig) else LiberoConfig()
    checks = [_package(needed), _gl(config, needed), _assets(config, needed)]
    if needed and not any(check.problem for check in checks):
        checks.append(check_scenes(config))
    return checks


def _package(needed: bool) -> Check:
    try:
        found = install.find_package()
    except UserError as error:
        return Check("LIBERO", problem=from_error("LIBERO", error).problem, mend=install.INSTALL, needed=needed)
    return Check("LIBERO", f"hf-libero {installed_version('hf-libero') or ''}, {found}", needed=needed)


def _gl(config: LiberoConfig, needed: bool) -> Check:
    if installed_version("mujoco") is None:
        return Check("GL", problem="cannot be tried without mujoco", mend=install.INSTALL, needed=needed)
    try:
        return Check("GL", f"{install.working_gl(config.gl)} renders without a display", needed=needed)
    except UserError as error:
        return from_error("GL", error, needed=needed)


def _assets(config: LiberoConfig, needed: bool) -> Check:
    """Where there are none the simulator would download them to the home folder; nothing else is written there."""
    name = "LIBERO assets"
    try:
        return Check(name, str(install.find_assets(config.assets, download=False)), needed=needed)
    except UserError as error:
        if config.assets or os.environ.get(install.ASSETS_VARIABLE):
            return from_error(name, error, "name a folder that has them all", needed=needed)
        found = f"none; the first start would download them to the home folder, {KEPT}"
        fetch = f"{install.ASSETS_VARIABLE}=PATH, or hf download {install.HUB_REPOSITORY} --repo-type dataset"
        return Check(name, found, "expected meshes and textures", f"{fetch} --local-dir {KEPT}", needed=needed)


def check_scenes(config: LiberoConfig) -> Check:
    """Starts each distinct scene once, in a worker process: whether assets are complete is known no sooner.

    The first takes some seconds, each further one a second or two.
    """
    tasks = list(load_tasks(config.suite, config.tasks))
    scenes: dict[str, Task] = {}
    for task in tasks:
        scenes.setdefault(_scene(task_file(config.suite, task.name)), task)
    failed: list[str] = []
    with closing(Libero(config.model_copy(update={"workers": 1, "settle_steps": 0}))) as simulator:
        for task in scenes.values():
            try:
                simulator.reset([SimulatorStart(task.task_id, 0)])
            except UserError as error:
                failed.append(str(error))
    found = f"{len(scenes) - len(failed)} of {len(scenes)} distinct ones of {len(tasks)} tasks of {config.suite} start"
    if not failed:
        return Check("LIBERO scenes", found)
    mend = "complete the assets, or leave tasks out: simulator.tasks=[...]"
    return Check("LIBERO scenes", found, failed[0], mend)


def _scene(path: Path) -> str:
    """What a task's definition says of its scene: kind, fixtures and objects."""
    words = path.read_text()
    parts = (r"\(problem ([^)]*)\)", r"\(:fixtures([^()]*)\)", r"\(:objects([^()]*)\)")
    return "\n".join(" ".join(found[1].split()) for part in parts if (found := re.search(part, words)))
