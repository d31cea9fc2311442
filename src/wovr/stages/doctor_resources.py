"""Cores, memory and disk beside what `wovr plan` counts for an experiment; part of `wovr doctor`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wovr.core.errors import UserError
from wovr.core.run import MANIFEST
from wovr.stages.doctor import GB, Check, from_error
from wovr.stages.experiment import Experiment
from wovr.stages.plan import Plan, make_plan
from wovr.stages.plan_machine import Machine

CGROUP = Path("/sys/fs/cgroup/memory.max")


def check_resources(experiment: Experiment, run: Path, gpus: list[tuple[str, int]]) -> list[Check]:
    """Of one process, as `wovr run` starts. Making the plan takes some seconds."""
    total, free = host_memory()
    cores = Check("CPU", f"{len(os.sched_getaffinity(0))} cores")
    # The rate counts for the time alone, which is not told here.
    machine = Machine(1, min(size for _, size in gpus)) if gpus else Machine(0, total, tflops=1.0)
    try:
        plan = make_plan(experiment, machine)
    except UserError as error:
        return [cores, from_error("plan", error)]
    return [cores, *check_memory(plan, total, free), check_disk(plan, run)]


def check_memory(plan: Plan, total: float, free: float) -> list[Check]:
    """The host's bytes, and the GPU's where there is one; these stop nothing, as several may share the work."""
    gpus = plan.machine.gpus
    wanted = max(stage.host for stage in plan.stages) if gpus else plan.needs(plan.tightest)
    found = f"{total / GB:.1f} GB, {free / GB:.1f} GB free; takes up to {wanted / GB:.1f} GB"
    mend = f"wovr plan CONFIG --gpus {gpus} says what to change" if not gpus else "a machine with more memory"
    lacks = "too little" if wanted > total else ""
    checks = [Check("memory", found, lacks, mend if lacks else "")]
    if gpus:
        size, wanted, usable = plan.machine.memory, plan.needs(plan.tightest), plan.machine.usable
        found = f"{size / GB:.0f} GB, {usable / GB:.1f} GB to use; takes up to {wanted / GB:.1f} GB"
        lacks = f"{plan.tightest.name} is too large for one GPU" if plan.too_large else ""
        mend = f"wovr plan CONFIG --gpu-memory {size / GB:.0f} says what to change" if lacks else ""
        checks.append(Check("GPU memory", found, lacks, mend, needed=False))
    return checks


def check_disk(plan: Plan, run: Path) -> Check:
    """Bytes that are still to be written against those free, where the run folder is or will be."""
    wanted = sum(stage.disk for stage in plan.stages)
    kept = sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) if run.is_dir() else 0
    free = shutil.disk_usage(existing(run)).free
    found = f"{free / GB:.1f} GB free; all stages keep up to {wanted / GB:.1f} GB"
    if kept:
        found += f", of which {kept / GB:.1f} GB are there"
    if wanted - kept <= free:
        return Check("disk", found)
    mend = "free some, or take another disk: --run PATH"
    return Check("disk", found, f"too little at {existing(run)}", mend)


def check_run_folder(run: Path) -> Check:
    """Whether it can be written, or made."""
    place = existing(run)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Check("run folder", f"{run}, " + ("to be continued" if (run / MANIFEST).exists() else "can be made"))
    return Check("run folder", problem=f"expected to write {run}, found {place} closed", mend="--run PATH")


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def host_memory() -> tuple[float, float]:
    """(all, free) bytes; of the container's share where there is one."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = float(page * os.sysconf("SC_PHYS_PAGES")), float(page * os.sysconf("SC_AVPHYS_PAGES"))
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # knows what the system would give back of its caches
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = 1024.0 * int(lines["MemAvailable"].split()[0]) if "MemAvailable" in lines else free
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    if limit.isdigit():
        total = min(total, float(limit))
    return total, min(free, total)
