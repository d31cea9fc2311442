"""Processes that meet, as `wovr_cli.launch` starts them; what each says is in FOLDER/rank_N.log."""

import subprocess
import sys
import time
from pathlib import Path

from wovr_cli import launch


def start(script: str, folder: Path, processes: int, *arguments: str) -> list[subprocess.Popen[bytes]]:
    """Run `script` with FOLDER and the arguments in so many processes, one thread each."""
    shared = launch._environment(processes) | {"OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"rank_{rank}.log").open("w") as log:
            command = [sys.executable, "-c", script, str(folder), *arguments]
            ranks.append(subprocess.Popen(command, env=shared | own, stdout=log, stderr=log))
    return ranks


def wait(ranks: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit statuses; when one process fails, the others are killed, as the launcher does."""
    while any(process.poll() is None for process in ranks):
        if any(process.poll() for process in ranks):
            for process in ranks:
                process.kill()
        time.sleep(0.05)
    return [process.wait() for process in ranks]
