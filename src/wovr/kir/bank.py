"""The keyframe bank: every start state of a run in one safetensors file.

Legend: N start states, M memory frames, A action dims; images are height x width x 3.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from wovr.core.checkpoint import load_tensors, save_tensors
from wovr.core.errors import UserError
from wovr.core.types import StartState
from wovr.kir.mine import FIRST_FRAME

ARRAYS = {
    # stored name: field of StartState, dtype and dimensions of the stack
    "reference_NHWC": ("reference_HWC", torch.uint8, 4),
    "memory_NMHWC": ("memory_MHWC", torch.uint8, 5),
    "memory_actions_NMA": ("memory_actions_MA", torch.float32, 3),
}
MOVED = {"moved_NA": ("moved_A", torch.float32, 2)}
"""As ARRAYS; stored where all starts have it."""
FACTS = {"instruction": str, "task_id": int, "episode": str, "step": int, "reason": str, "init_id": int}
"""Fields of StartState that are stored as JSON in the header, in order."""


class KeyframeBank:
    """Start states of imagined rollouts, keyframes and first frames alike. Immutable."""

    def __init__(self, starts: Iterable[StartState]) -> None:
        self.starts = tuple(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[StartState]:
        return iter(self.starts)

    def __getitem__(self, index: int) -> StartState:
        return self.starts[index]

    @property
    def keyframes(self) -> KeyframeBank:
        """Everything that is not a first frame."""
        return KeyframeBank(start for start in self.starts if start.reason != FIRST_FRAME)

    @property
    def first_frames(self) -> KeyframeBank:
        """Starts at o_0."""
        return self.select(reason=FIRST_FRAME)

    def select(self, *, reason: str | None = None, task_id: int | None = None) -> KeyframeBank:
        """Starts of one reason, of one task, or both."""
        return KeyframeBank(
            start for start in self.starts if reason in (None, start.reason) and task_id in (None, start.task_id)
        )

    def reasons(self) -> dict[str, int]:
        """How many starts there are of each reason."""
        return dict(Counter(start.reason for start in self.starts))

    def save(self, path: Path) -> None:
        """Write one file. At least one start; all of one image, memory and action size."""
        assert self.starts, "an empty bank has no sizes to store"
        known = all(start.moved_A is not None for start in self.starts)
        tensors = {
            name: torch.from_numpy(np.stack([getattr(start, attribute) for start in self.starts]))
            for name, (attribute, _, _) in (ARRAYS | (MOVED if known else {})).items()
        }
        facts = {name: [getattr(start, name) for start in self.starts] for name in FACTS}
        save_tensors(path, tensors, starts=json.dumps(facts))

    @classmethod
    def load(cls, path: Path) -> KeyframeBank:
        """Read what `save` wrote. UserError where the file is missing, damaged or not a bank."""
        tensors, metadata = load_tensors(path)
        if "starts" not in metadata:
            raise UserError(f"{path}: expected a keyframe bank, found no 'starts' in its header")
        facts = _facts(path, metadata["starts"])
        n = len(facts["step"])
        stored = ARRAYS | {name: kind for name, kind in MOVED.items() if name in tensors}
        for name, (_, dtype, ndim) in stored.items():
            tensor = tensors.get(name)
            if tensor is None:
                raise UserError(f"{path}: expected tensor '{name}' of a keyframe bank, found none")
            if tensor.dtype != dtype or tensor.ndim != ndim or len(tensor) != n:
                expected = f"{ndim} dimensions, {n} entries of {dtype}"
                raise UserError(f"{path}: {name}: expected {expected}, found {tuple(tensor.shape)} of {tensor.dtype}")
        arrays = {attribute: tensors[name].numpy() for name, (attribute, _, _) in stored.items()}
        return cls(StartState(**{key: values[i] for key, values in (arrays | facts).items()}) for i in range(n))


def _facts(path: Path, text: str) -> dict[str, list]:
    """The lists under `starts` in the header, checked."""
    try:
        facts = json.loads(text)
        lengths = {len(facts[name]) for name in FACTS}
        typed = all(type(value) is kind for name, kind in FACTS.items() for value in facts[name])
    except (ValueError, KeyError, TypeError):
        typed, lengths = False, set()
    if not typed or len(lengths) != 1:
        raise UserError(f"{path}: expected lists {', '.join(FACTS)} of one length under 'starts' in its header")
    return {name: facts[name] for name in FACTS}
