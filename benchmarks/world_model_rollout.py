"""Imagined frames per second of codec and ActionDiT, chunk after chunk, at several batch sizes.

    python benchmarks/world_model_rollout.py                                the demo's networks on this machine
    python benchmarks/world_model_rollout.py --size 5b --batch 1 8 32       Wan2.2's with random weights, on a GPU

Weights are random, which takes the same time. A chunk is one solution of the flow (five Euler steps) and the decoding
of its new latents; start states and policy are not counted (`imagined_rollout.py` times the whole closed loop). FLOPs
are counted; the matrix rate is that of the chunk's own products, each measured alone and warm.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import SIZES, device, flops, matrix_rate, now, peak_gigabytes, seconds, square_rate, write

from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.codec.wan import WanCodec, WanCodecConfig
from wovr.core.dist import Precision, precision
from wovr.core.seed import normal, seed_everything
from wovr.core.types import StartState, no_motion
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT
from wovr.flow.schedule import FlowConfig
from wovr.imagine.world_model import WorldModel

CHUNK = 8
IMAGE = {"tiny": 64, "5b": 256}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 128], help="trajectories side by side")
    parser.add_argument("--steps", type=int, default=FlowConfig().steps, help="Euler steps per chunk")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=precision())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the JSON beside printing it")
    return parser.parse_args()


def build(size: str, steps: int, requested: Precision) -> WorldModel:
    """Made in the dtype that it computes in: at full size a copy would not fit beside it."""
    config, _ = SIZES[size]
    context = ContextConfig()
    dtype = torch.bfloat16 if requested == "bf16" else torch.float32
    torch.set_default_dtype(dtype)
    with torch.device(device()):
        codec = WanCodec(WanCodecConfig()) if size == "5b" else ConvCodec(ConvCodecConfig())
        dit = ActionDiT(config, layout(context, CHUNK))
    torch.set_default_dtype(torch.float32)
    for network in (codec, dit):
        network.eval().requires_grad_(False).to(dtype)
    return WorldModel(codec, dit, context, FlowConfig(steps=steps))


def starts(model: WorldModel, count: int, image: int) -> list[StartState]:
    random, memory = np.random.default_rng(0), model.context.memory_frames
    frames = random.integers(0, 256, (1 + memory, image, image, 3), dtype=np.uint8)
    actions = np.tile(no_motion(model.action_dim), (memory, 1))
    return [StartState(frames[0], frames[1:], actions, "", 0, "demo_0", 0, "first_frame")] * count


def measure(model: WorldModel, batch: int, image: int, repeats: int) -> dict[str, Any]:
    """Chunks follow each other, as in a rollout; each takes the state that the one before left."""
    began = now()
    state = model.start(starts(model, batch, image))
    start_seconds = now() - began
    noise_BLChw = normal((batch, *model.noise_shape(state)), 0, "noise").to(model.device)
    actions_BHA = normal((batch, CHUNK, model.action_dim), 0, "actions").to(model.device)

    def chunk() -> None:
        nonlocal state
        _, frames_BHHWC, state = model.step(state, actions_BHA, noise_BLChw)
        assert frames_BHHWC.shape[1] == CHUNK

    def imagine() -> None:
        model.imagine(state, actions_BHA, noise_BLChw)

    took, in_dit = seconds(chunk, repeats, warm_up=1), seconds(imagine, repeats, warm_up=0)
    work = flops(chunk)
    at_shapes = matrix_rate(imagine, repeats)
    return {
        "frames_per_second": round(batch * CHUNK / took, 1),
        "milliseconds_per_chunk": round(1e3 * took, 2),
        "share_of_dit": round(in_dit / took, 3),
        "start_milliseconds": round(1e3 * start_seconds, 1),
        "teraflops_per_chunk": round(work / 1e12, 4),
        "gigaflops_per_second": round(work / took / 1e9, 1),
        "dit_share_at_shapes": round(flops(imagine) / in_dit / at_shapes, 3),
        "decoder_bytes_per_trajectory": sum(kept[0].numel() * kept.element_size() for kept in state.decoder or ()),
        "peak_gigabytes": peak_gigabytes(),
    }


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    model = build(args.size, args.steps, args.precision)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    with torch.no_grad():  # inference mode would hide linear layers from the counters
        by_batch = {str(batch): measure(model, batch, IMAGE[args.size], args.repeats) for batch in args.batch}
    write(
        {
            **{name: value for name, value in vars(args).items() if name != "out"},
            "parameters": sum(value.numel() for value in model.dit.parameters()),
            "matrix_gigaflops_square": round(square_rate(dtype, args.repeats) / 1e9, 1),
            "by_batch": by_batch,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
