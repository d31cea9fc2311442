"""An update of RL in imagination: seconds of each phase, and who spends them.

    python benchmarks/rl_step.py                                        the demo's update on this machine
    python benchmarks/rl_step.py --size full --lora --collocated        Wan2.2-TI2V-5B and OpenVLA-OFT, on one GPU
    python benchmarks/rl_step.py --size full --collocated --zero 2 --offload

Weights are random, which takes the same time; at full size they are made on the device. Nothing succeeds while a
rollout runs, so that all go to the horizon; half of each group is called a success afterwards, so that every chunk is
trained on. That is an update at its dearest. The first update warms up; medians of the others count.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from imagined_rollout import starts
from machine import PARTS, be_one_of_one, device, peak_gigabytes, watched, write
from world_model_rollout import IMAGE, build

from wovr.core.dist import Dist, precision
from wovr.core.seed import seed_everything
from wovr.core.train import Trainer
from wovr.imagine.rollout import RolloutBatch, rollout
from wovr.imagine.world import ImaginedWorld
from wovr.policy.base import Policy
from wovr.policy.files import PolicyModule, make_policy
from wovr.reward.classifier import RewardClassifier, RewardClassifierConfig
from wovr.stages.experiment import Experiment
from wovr.stages.phases import Phases
from wovr.stages.pipeline import load_experiment
from wovr.stages.policies import Acting, weights_dtype
from wovr.stages.policy_update import update_policy

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = {"tiny": ("tiny", "tabletop"), "full": ("5b", "libero_goal")}
"""The world model's size, and the recipe that policy and update are taken from."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--groups", type=int, help="groups per update (default: tiny 24, full 4)")
    parser.add_argument("--batch", type=int, help="trajectories side by side (default: tiny 192, full 32)")
    parser.add_argument("--horizon", type=int, default=48, help="env steps of a trajectory")
    parser.add_argument("--collocated", action="store_true", help="what a phase does not need waits on the host")
    parser.add_argument("--lora", action="store_true", help="train adapters (full size)")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), default=0)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--updates", type=int, default=3, help="timed updates")
    parser.add_argument("--out", type=Path, help="where to write the JSON beside printing it")
    return parser.parse_args()


def recipe(args: argparse.Namespace) -> Experiment:
    """Without files: sizes and settings alone."""
    path = CONFIGS / f"{SIZES[args.size][1]}.yaml"
    full = ["policy.pretrained=null", "sft.train={steps: 1}"] if args.size == "full" else []
    return load_experiment(path, [*full, *(["policy.lora={rank: 32}"] if args.lora else [])])


def make(config: Experiment) -> PolicyModule:
    """On the device, in the dtype in which it is trained."""
    dtype = weights_dtype(config, config.rl.update.optim.precision)
    torch.set_default_dtype(dtype)
    with torch.device(device()):
        policy = make_policy(config.policy, dtype)
    torch.set_default_dtype(torch.float32)
    return policy


def half_succeed(batch: RolloutBatch, group_size: int) -> RolloutBatch:
    """At their last step."""
    rows = np.arange(len(batch)) % group_size < group_size // 2
    return replace(batch, success_step_N=np.where(rows, batch.limit_N - 1, batch.probability_NT.shape[1]))


def main() -> None:
    args = arguments()
    seed_everything(0)
    config, full = recipe(args), args.size == "full"
    groups, side_by_side = args.groups or (4 if full else 24), args.batch or (32 if full else 192)
    update, group_size = config.rl.update, config.rl.update.grpo.group_size
    if args.zero:
        be_one_of_one()
    dist = Dist(CONFIGS / f"deepspeed/zero{args.zero}.json" if args.zero else None, offload=args.offload)

    policy = make(config)
    trainer = Trainer(policy, update.optim, dist, update.steps(1 + args.updates))
    phases = Phases(trainer, None, collocated=args.collocated)
    model = build(SIZES[args.size][0], config.world_model.flow.steps, precision())
    reward = RewardClassifier(RewardClassifierConfig()).to(dist.device).requires_grad_(False)
    reward.calibrated(threshold=1.1, hold=1)  # out of reach
    world = ImaginedWorld(model, reward, args.horizon)
    phases.add_world([cast(torch.nn.Module, model.codec), model.dit, reward], world.leave)
    watch = watched({"policy": policy, "dit": model.dit, "decode": model.codec, "reward": reward})

    runs: list[dict[str, Any]] = []
    for number in range(1 + args.updates):
        watch.seconds.clear()
        with phases.rollouts():
            batch = rollout(
                world,
                Acting(cast(Policy, trainer.acting()), dist, update.optim.precision),
                starts(groups, IMAGE[SIZES[args.size][0]], model.action_dim),
                seed=0,
                number=number,
                group_size=group_size,
                batch_size=side_by_side,
                temperature=update.temperature,
                correlation=update.correlation,
            )
        spent = {part: watch.seconds[part] for part in PARTS}
        with phases.training():
            logs = update_policy(trainer, half_succeed(batch, group_size), update, seed=0, number=number)
        seconds = phases.seconds["rollout"] + phases.seconds["training"]
        parts = {**spent, "training": phases.seconds["training"]}
        parts["other"] = seconds - sum(parts.values())
        frames = float(batch.steps_N.sum())
        runs.append(
            {
                "seconds_rollout": phases.seconds["rollout"],
                "seconds_training": phases.seconds["training"],
                "frames_per_second_of_rollout": frames / phases.seconds["rollout"],
                "frames_per_second_of_update": frames / seconds,
                "log_prob_gap": logs["log_prob_gap"],
                **{f"share_{part}": value / seconds for part, value in parts.items()},
                **{f"memory_{name}_gb": value / 1e9 for name, value in phases.peaks.items()},
            }
        )
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    measured = {key: round(median(run[key] for run in runs[1:]), 4) for key in runs[0]}
    write(
        {
            **settings,
            "groups": groups,
            "trajectories": groups * group_size,
            "batch": side_by_side,
            "chunks_trained_on": int(batch.chunk_mask_NC.sum()),
            "policy_parameters": sum(p.numel() for p in policy.parameters()),
            "world_model_parameters": sum(p.numel() for p in model.dit.parameters()),
            "gigabytes_moved_per_update": round(
                sum(parked.bytes_moved for parked in (*phases.of_rollouts, *phases.of_training)) / 1e9 / len(runs), 3
            ),
            **measured,
            "peak_gigabytes": peak_gigabytes(),
        },
        args.out,
    )
    dist.close()


if __name__ == "__main__":
    main()
