"""What the benchmarks share: sizes of networks, medians of repeats, and what the machine's matrix unit gives."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from wovr.core.hardware import device_name
from wovr.dit.model import DiTConfig
from wovr.stages.pipeline import load_experiment

TINY = DiTConfig(channels=12, causal_context=True)
"""The demo's network; 64 x 64 images are 8 x 8 latents under its codec."""
WAN = load_experiment(Path(__file__).parents[1] / "configs" / "libero.yaml").world_model.dit
"""Wan2.2-TI2V-5B as published for WoVR; 256 x 256 images are 16 x 16 latents."""
SIZES = {"tiny": (TINY, 8), "5b": (WAN, 16)}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


PARTS = {
    "policy": ("act",),
    "dit": ("forward", "precompute"),
    "decode": ("decode",),
    "reward": ("probability",),
}
"""Who spends an imagined rollout's time, and in which methods."""


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def be_one_of_one() -> None:
    """What DeepSpeed asks of the environment, for this process alone."""
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }


def seconds(work: Callable[[], object], repeats: int, warm_up: int = 2) -> float:
    """Median of `repeats` runs after some to warm up."""
    times = []
    for _ in range(warm_up + repeats):
        start = now()
        work()
        times.append(now() - start)
    return median(times[warm_up:])


def flops(work: Callable[[], object]) -> int:
    """Counted, not estimated: matrix products, convolutions and attention of one run."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class _Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            *_, a, b = (value for value in args if isinstance(value, torch.Tensor))
            strides = a.stride()[-1] == 1, b.stride()[-1] == 1
            self.found[tuple(a.shape), tuple(b.shape), a.dtype, *strides] += 1
        return func(*args, **(kwargs or {}))


def matrix_rate(work: Callable[[], object], repeats: int) -> float:
    """FLOP/s of the matrix products of `work`, each by itself and warm: as fast as this machine does these shapes."""
    with _Shapes() as shapes:
        work()
    total, took = 0.0, 0.0
    for (left, right, dtype, left_rows, right_rows), count in shapes.found.items():
        a = _matrix(left, dtype, left_rows)
        b = _matrix(right, dtype, right_rows)
        product = torch.mm if a.ndim == 2 else torch.bmm
        took += count * seconds(lambda product=product, a=a, b=b: product(a, b), repeats)
        total += count * 2.0 * a.numel() * b.shape[-1]
    return total / took


def square_rate(dtype: torch.dtype, repeats: int) -> float:
    """FLOP/s of one large square product: 1024 on a CPU, 8192 on a GPU."""
    side = 8192 if device() == "cuda" else 1024
    a = torch.randn(side, side, device=device()).to(dtype)
    return 2 * side**3 / seconds(lambda: a @ a, repeats)


def _matrix(shape: tuple[int, ...], dtype: torch.dtype, rows: bool) -> torch.Tensor:
    if rows:
        return torch.randn(shape, device=device()).to(dtype)
    return torch.randn(*shape[:-2], shape[-1], shape[-2], device=device()).to(dtype).transpose(-1, -2)


class Stopwatch:
    """Adds up the time spent in methods of live objects. Calls inside a timed call count once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = False

    def watch(self, part: str, owner: Any, method: str) -> None:
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._timing(part):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    @contextmanager
    def _timing(self, part: str) -> Iterator[None]:
        if self._running:
            yield
            return
        self._running = True
        begin = now()
        yield
        self.seconds[part] += now() - begin
        self._running = False


def watched(owners: Mapping[str, Any]) -> Stopwatch:
    """A stopwatch on the PARTS of a rollout."""
    watch = Stopwatch()
    for part, methods in PARTS.items():
        for method in methods:
            watch.watch(part, owners[part], method)
    return watch


def peak_gigabytes() -> float | None:
    """Of the accelerator's memory since the start, None without one."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None


def write(result: dict[str, Any], out: Path | None) -> None:
    """Print `result` with what it was measured on, and write it to `out` if that is given."""
    about = {
        "device": device_name(torch.device(device())),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }
    text = json.dumps(result | about, indent=2)
    print(text)
    if out is not None:
        out.write_text(text + "\n")
