"""Time of one training step of the world model, and its share of what the matrix unit can do.

    python benchmarks/world_model_train_step.py                               the demo's network on this machine
    python benchmarks/world_model_train_step.py --size 5b --batch 8 --zero 2  Wan2.2-TI2V-5B, random weights, on a GPU

It is the step that `wovr train-wm` takes: the trainer's, with loss, gradient, clipping, optimiser and average. FLOPs
are counted; `share_at_shapes` is their rate over that of the step's own matrix products, each measured alone and warm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from machine import SIZES, be_one_of_one, device, flops, matrix_rate, peak_gigabytes, seconds, square_rate, write

from wovr.core.dist import Dist, precision
from wovr.core.optim import OptimConfig
from wovr.core.seed import normal, seed_everything
from wovr.core.train import Trainer
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import PATCH, ActionDiT
from wovr.flow.schedule import FlowConfig
from wovr.stages.latents import WorldLossConfig, world_loss

ZERO = Path(__file__).parents[1] / "configs" / "deepspeed"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=16, help="windows")
    parser.add_argument("--copies", type=int, default=4, help="noised copies of a window, with a causal context")
    parser.add_argument("--chunks", type=int, default=1, help="chunks of a clip in one forward (packed training)")
    parser.add_argument("--checkpointing", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--compile", action="store_true", help="let torch compile the blocks")
    parser.add_argument("--muon", action="store_true", help="Muon for matrices, as the demo does")
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), help="under DeepSpeed, in one process")
    parser.add_argument("--ema", type=float, default=0.0, help="decay of the average; 0 keeps none")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=precision())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="where to write the JSON beside printing it")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    config, side = SIZES[args.size]
    copies = args.copies if config.causal_context else 1
    if args.zero:
        be_one_of_one()
    dist = Dist(ZERO / f"zero{args.zero}.json" if args.zero else None)
    context = ContextConfig()
    single = layout(context, 8)
    window = single.packed(args.chunks)
    optim = OptimConfig(
        lr=1e-4, muon_lr=2e-4 if args.muon else 0.0, grad_clip=1.0, ema_decay=args.ema, precision=args.precision
    )
    with torch.device(device()):
        dit = ActionDiT(config, single)
    dit.checkpointing = args.checkpointing
    if args.compile:
        for block in dit.blocks:
            block.compile(dynamic=False)
    trainer = Trainer(dit, optim, dist, total_steps=1000)
    latent = (config.channels, side, side)
    batch = {
        "latents_BLChw": normal((args.batch, window.frames, *latent), 0, "latents"),
        "actions_BTA": normal((args.batch, window.actions, config.action_dim), 0, "actions"),
        "noise_BFChw": normal((args.batch, window.context + copies * window.new, *latent), 0, "noise"),
        "uniform_BK": torch.rand(args.batch, args.chunks),
        "memory_uniform_B": torch.rand(args.batch),
    }
    loss = world_loss(context, FlowConfig(train_sigmas="grid"), window, WorldLossConfig(copies=copies))

    def step() -> None:
        trainer.step(batch, loss)

    took = seconds(step, args.repeats)
    with torch.compiler.set_stance("force_eager"):  # compiled code would hide its operations from the counters
        work, at_shapes = flops(step), matrix_rate(step, args.repeats)
    square = square_rate(torch.bfloat16 if args.precision == "bf16" else torch.float32, args.repeats)
    per_frame = (side // PATCH) ** 2
    computed = args.batch * (window.context + copies * window.new if config.causal_context else window.frames)
    write(
        {
            **{name: value for name, value in vars(args).items() if name != "out"},
            "copies": copies,
            "parameters": sum(value.numel() for value in dit.parameters()),
            "milliseconds": round(1e3 * took, 2),
            "tokens_per_second": round(computed * per_frame / took),
            "supervised_tokens_per_second": round(args.batch * copies * window.new * per_frame / took),
            "teraflops_per_step": round(work / 1e12, 4),
            "gigaflops_per_second": round(work / took / 1e9, 1),
            "matrix_gigaflops_at_shapes": round(at_shapes / 1e9, 1),
            "matrix_gigaflops_square": round(square / 1e9, 1),
            "share_at_shapes": round(work / took / at_shapes, 3),
            "share_of_square": round(work / took / square, 3),
            "peak_gigabytes": peak_gigabytes(),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
