"""What a training asks of a machine: its states under ZeRO, and its time.

What is assumed and not measured stands here, and every plan tells it.

ZeRO as DeepSpeed has it: states are split over the processes from stage 1 on, gradients from 2, weights from 3. Weights
and gradients are then in the precision of the computation, beside an fp32 master copy. Offloaded states lie in host
memory, and so do the gradients that stage 2 or 3 splits.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Literal

import torch

from wovr.core.dist import Precision, precision
from wovr.core.errors import UserError
from wovr.core.footprint import Footprint
from wovr.stages.plan_parts import Memory

GB = 1e9
RESERVED, FRAGMENTED = 1.5 * GB, 0.05
"""Of a GPU's memory: the CUDA context with its libraries, and the share that the allocator cannot use."""
TRAINING, IMAGINATION, ON_CPU = 0.30, 0.10, 0.20
"""Shares of the matrix rate that are reached."""
LINK, PCIE, GPU_MEMORY, HOST_MEMORY = 375 * GB, 25 * GB, 4300 * GB, 100 * GB
"""Bytes/s between GPUs, between a GPU and its host, and to either's memory."""
KERNELS = 0.04 * GB
"""Bytes that bf16 kernels keep for themselves on a CPU, where 0.01 to 0.09 GB were measured."""
BUCKET, GATHERED = 200_000_000, 1_000_000_000
"""Elements that are reduced at once, and that stage 3 gathers or updates at once, by configs/deepspeed."""
UPDATED = 28
"""Bytes per parameter that AdamW reads and writes."""
RATE = 790.0
"""TFLOP/s of bf16 matrix products that an H200 sustains."""

COUNTED = (
    "Memory is counted by running every network and loss without numbers. 1 GB is 10^9 bytes.",
    "Upper bounds: episodes and trajectories last to the horizon, frames lie on disk as they are.",
)
ON_GPUS = (
    f"{RESERVED / GB:g} GB and {FRAGMENTED:.0%} of a GPU are left to CUDA and its allocator. Not checked on a GPU yet.",
    f"Training reaches {TRAINING:.0%} of the matrix rate (published for such networks: 13 to 39 %), imagination "
    f"{IMAGINATION:.0%} (the published WoVR: 23 frames/s on an H100).",
    f"To this come gradients between GPUs at {LINK / GB:g} GB/s and to the host at {PCIE / GB:g}, and the optimiser's "
    f"states at {GPU_MEMORY / GB:,g} GB/s or, on the host, {HOST_MEMORY / GB:g}. Starting an operation counts as "
    "nothing, so small networks take longer. The true simulator's time does not count.",
    "Processes share training, what is encoded for it, and RL's rollouts; the first one alone simulates and evaluates. "
    "Each holds frame_memory in host memory. ZeRO counts wherever AdamW trains.",
)
ON_CPUS = (
    f"{ON_CPU:.0%} of the matrix rate is reached. The true simulator's time does not count.",
    "Within 15 % of what processes took. What malloc keeps of freed blocks is not counted: up to four fifths more.",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is there, and how training is spread over it."""

    gpus: int = 1
    """One process each; 0 is one process on this machine's CPU."""
    memory: float = 80 * GB
    """Bytes of one GPU, or of the host where there is none."""
    zero: int = 0
    """ZeRO stage; 0 trains without DeepSpeed, fp32 weights under autocast."""
    offload: bool = False
    """Optimiser's states in host memory."""
    tflops: float = RATE
    """Matrix rate of one GPU, or of this CPU, in the precision of training."""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """For people."""
        return COUNTED + (ON_GPUS if self.gpus else ON_CPUS)

    @property
    def processes(self) -> int:
        return max(1, self.gpus)

    @property
    def usable(self) -> float:
        """Bytes of one GPU that tensors may take."""
        return self.memory * (1 - FRAGMENTED) - RESERVED if self.gpus else self.memory

    @property
    def kept_on_cpu(self) -> bool:
        """Whether gradients leave the GPU as they come."""
        return self.offload and self.zero >= 2

    def shards(self, stage: int) -> int:
        """Among how many processes is split what ZeRO splits from `stage` on."""
        return self.processes if self.zero >= stage else 1

    def bf16(self, requested: Precision) -> bool:
        """As `wovr.core.dist.precision` on that machine."""
        if self.gpus:
            return requested != "fp32"
        return precision(requested) == "bf16"

    def seconds(self, flops: float, work: Literal["training", "imagination"]) -> float:
        """Of this many FLOPs in one process."""
        share = ON_CPU if not self.gpus else TRAINING if work == "training" else IMAGINATION
        return flops / (self.tflops * 1e12 * share)


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained, and how."""

    parameters: int
    frozen: float
    """Bytes of weights that are not trained."""
    moments: int
    """Bytes: 8 per parameter with AdamW, 4 with Muon."""
    averaged: bool
    bf16: bool
    accumulate: int


def training_memory(machine: Machine, model: Trained, step: Footprint) -> Memory:
    """Of one process; `step` is the footprint of one micro-batch.

    A GPU that keeps all gradients needs room for them and for the activations that are left when each is finished;
    with more micro-batches than one, for all of both.
    """
    P = model.parameters
    width = 2 if machine.zero and model.bf16 else 4
    kept = 0.0 if machine.kept_on_cpu else 1 / machine.shards(2)
    gradients = kept * width * P
    backward = step.peak(0) if model.accumulate > 1 else step.peak(kept) - gradients
    backward += KERNELS * (model.bf16 and not machine.gpus)
    update = 0.0
    if machine.zero:
        gradients += kept * 4 * P * (model.accumulate > 1)  # accumulated in fp32
        backward += BUCKET * width
        update = 0.0 if machine.offload else 4 * P / machine.shards(1)  # gradients, as wide as the master weights
    if machine.zero == 3:
        backward += min(P * width + model.frozen, GATHERED * width)
        update = min(update, 4 * GATHERED)
    states = model.moments + 4 * P * model.averaged + 4 * P * bool(machine.zero)
    on_host = states + (4 * P if machine.kept_on_cpu else 0) if machine.offload else 0
    return Memory(
        weights=(width * P + model.frozen) / machine.shards(3),
        gradients=gradients,
        optimizer=0.0 if machine.offload else states / machine.shards(1),
        activations=max(backward, update),
        host=on_host * machine.processes / machine.shards(1),
    )


def step_seconds(machine: Machine, model: Trained, step: Footprint) -> float:
    """Of one optimiser step: what is computed, what travels, and what the optimiser touches, one after the other."""
    passes, width = model.accumulate, 2 if machine.zero and model.bf16 else 4
    travels = {0: 2, 1: 2, 2: passes + 1, 3: 3 * passes}[machine.zero] * width * model.parameters
    seconds = machine.seconds(step.flops * passes, "training") + travels / LINK * (1 - 1 / machine.processes)
    states = UPDATED * model.parameters / machine.shards(1)
    if not machine.offload:
        return seconds + states / (GPU_MEMORY if machine.gpus else HOST_MEMORY)
    moved = (passes + 1) * width * model.parameters / machine.shards(1)
    return seconds + moved / PCIE + states * machine.processes / HOST_MEMORY  # the host's memory is everyone's


def this_machine(gpus: int, gpu_memory: float, *, zero: int, offload: bool, tflops: float | None) -> Machine:
    """From flags: memory in GB. For this CPU its own memory counts, and its rate is measured where none is given.

    Raises UserError where they contradict each other.
    """
    if offload and not zero:
        raise UserError("--offload: expected --zero 1, 2 or 3 with it, found 0")
    if gpus:
        return Machine(gpus, gpu_memory * GB, zero, offload, tflops or RATE)
    if zero:
        raise UserError(f"--zero: expected 0 with --gpus 0, found {zero}")
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Machine(0, memory, tflops=tflops or matrix_rate(precision() == "bf16"))


def matrix_rate(bf16: bool) -> float:
    """TFLOP/s of matrix products on this CPU, measured in a fraction of a second."""
    size, dtype = 1024, torch.bfloat16 if bf16 else torch.float32
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e12
