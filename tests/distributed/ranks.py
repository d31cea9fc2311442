"""Processes that meet, as `wovr_cli.launch` starts them; what each says is in FOLDER/rank_N.log."""

import subprocess
import sys
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
