"""Time of one ActionDiT forward, one imagined chunk's solution and one training step; prints JSON.

    python benchmarks/dit_step.py --batch 32 --threads 2

Times are the best of several repeats. `gemm_share` is the network's matrix-multiply FLOPs (counted, not estimated) per
second over the rate of a large square GEMM in the same precision, measured beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from wovr.core.seed import normal, seed_everything
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import PATCH, ActionDiT, DiTConfig
from wovr.flow.loss import velocity_loss
from wovr.flow.schedule import FlowConfig, solver_sigmas
from wovr.flow.solver import euler

LATENT_SIDE = 8
"""64x64 images under an 8x codec."""


def best_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Shortest of `repeats` runs after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def gemm_rate(dtype: torch.dtype, device: str, repeats: int) -> float:
    """FLOP/s of a square matrix product: 1024 on a CPU, 8192 on a GPU."""
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / best_seconds(lambda: a @ a, device, repeats)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="windows")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--causal-context", action="store_true", help="Euler steps share one pass over the context")
    parser.add_argument("--copies", type=int, default=1, help="noised copies of a window in a training step")
    parser.add_argument("--chunks", type=int, default=1, help="chunks of a clip in a window of a training step")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("medium")
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    seed_everything(0)

    window = layout(ContextConfig(), 8)
    config = DiTConfig(
        width=args.width,
        depth=args.depth,
        heads=args.heads,
        ffn_width=4 * args.width,
        causal_context=args.causal_context,
    )
    model = ActionDiT(config, window).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    shape = (args.batch, window.frames, config.channels, LATENT_SIDE, LATENT_SIDE)
    latents_BLChw = normal(shape, 0, "latents").to(device)
    noise_BNChw = latents_BLChw[:, window.context :]
    actions_BTA = normal((args.batch, window.actions, config.action_dim), 0, "actions").to(device)
    timesteps_BL = torch.full((args.batch, window.frames), 500.0, device=device)
    clip = window.packed(args.chunks)
    clip_RLChw = normal((args.batch * args.copies, clip.frames, *shape[2:]), 0, "latents").to(device)
    clip_timesteps_RL = torch.full((args.batch * args.copies, clip.frames), 500.0, device=device)
    clip_actions_BTA = normal((args.batch, clip.actions, config.action_dim), 0, "actions").to(device)
    sigmas = solver_sigmas(FlowConfig())
    autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def forward() -> torch.Tensor:
        with torch.no_grad(), autocast:
            return model(latents_BLChw, timesteps_BL, cache, new_only=True)

    def chunk() -> torch.Tensor:
        with torch.no_grad(), autocast:
            shared = model.precompute(actions_BTA, latents_BLChw[:, : window.context])
            return euler(
                lambda x, sigma: model(
                    torch.cat((latents_BLChw[:, : window.context], x), 1), timesteps_BL, shared, new_only=True
                ),
                noise_BNChw,
                sigmas,
            )

    def train_step() -> None:
        with autocast:
            prediction = model(clip_RLChw, clip_timesteps_RL, clip_actions_BTA, new_only=True)
        velocity_loss(prediction, clip_RLChw[:, clip.context :]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad(), autocast:
        cache = model.precompute(actions_BTA, latents_BLChw[:, : window.context])
    rate = gemm_rate(dtype, device, args.repeats)
    tokens = args.batch * window.frames * (LATENT_SIDE // PATCH) ** 2
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": tokens,
        "gemm_gflops": round(rate / 1e9, 1),
        **vars(args),
    }
    for name, work in (("forward", forward), ("chunk", chunk), ("train_step", train_step)):
        work_flops, seconds = flops(work), best_seconds(work, device, args.repeats)
        result[name] = {
            "ms": round(1e3 * seconds, 2),
            "tokens_per_second": round(tokens / seconds),
            "gflops": round(work_flops / seconds / 1e9, 1),
            "gemm_share": round(work_flops / seconds / rate, 3),
        }
    supervised = args.batch * args.copies * clip.new
    result["supervised_latents_per_second"] = round(supervised / result["train_step"]["ms"] * 1e3)  # type: ignore[index]
    result["imagined_frames_per_second"] = round(args.batch * 8 / result["chunk"]["ms"] * 1e3)  # type: ignore[index]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
