"""The state of an interrupted training on disk, in parts that any number of processes can read.

    NAME.state/step-500/part-0-of-2.safetensors     every second tensor, whole, whatever sharded it in memory
               step-500/part-1-of-2.safetensors
               best.safetensors                     weights of the best validation, where one is kept

Each process writes a part, so that none holds all of it. A step's folder appears by rename once every part is on disk,
and only then the one before is removed. Tensors are stored whole and by the names of their parameters: a state of two
processes under ZeRO-3 continues on one without it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from wovr.core.checkpoint import read_header, save_tensors, stored_tensors
from wovr.core.dist import Dist
from wovr.core.errors import UserError

STEP = "step-"


def save_state(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, step: int, dist: Dist, **metadata: str) -> None:
    """Write the state after `step` in place of an older one; every rank calls this with the same names.

    A rank keeps its share of the tensors alone, on the CPU, so that they may be gathered one by one.
    """
    mine = {
        name: value.detach().to("cpu", copy=True)
        for number, (name, value) in enumerate(tensors)
        if number % dist.world_size == dist.rank
    }
    unfinished, final = folder / f".{STEP}{step}.tmp", folder / f"{STEP}{step}"
    part = unfinished / f"part-{dist.rank}-of-{dist.world_size}.safetensors"
    dist.on_main(lambda: shutil.rmtree(unfinished, ignore_errors=True))
    save_tensors(part, mine, step=str(step), parts=str(dist.world_size), **metadata)
    dist.barrier()
    dist.on_main(lambda: _publish(unfinished, final))


def _publish(unfinished: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    for other in final.parent.glob(f"{STEP}*"):
        if other != final:
            shutil.rmtree(other)


class SavedState(Mapping[str, Tensor]):
    """What `save_state` wrote, read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        """Of the newest step. UserError where a part is missing or damaged."""
        self.path = max(folder.glob(f"{STEP}*"), key=lambda path: int(path.name.removeprefix(STEP)))
        files = sorted(self.path.glob("part-*.safetensors"))
        self.metadata = read_header(files[0]) if files else {}
        parts = self.metadata.get("parts", "1 or more")
        if parts != str(len(files)):
            raise UserError(
                f"{self.path}: expected {parts} parts of a training state, found {len(files)}; "
                "delete the folder to start anew"
            )
        self._stored = stored_tensors(self.path)

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        return self._stored[name].shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def find_state(folder: Path) -> SavedState | None:
    """The newest complete state, None where there is none."""
    return SavedState(folder) if any(folder.glob(f"{STEP}*")) else None
