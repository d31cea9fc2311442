"""Speed of imagined rollouts: frames per second of policy, world model and reward together, and where the time goes.

    python benchmarks/imagined_rollout.py [--run runs/demo] [--batch 128] [--chunks 6] [--out results.json]

Without a run folder all networks have random weights and the embedded sizes, which takes the same time. Nothing
succeeds, so every trajectory runs to the horizon. The first rollout warms up; the median of the others counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from machine import PARTS, device, now, watched, write

from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.checkpoint import load_model
from wovr.core.dist import precision
from wovr.core.types import StartState, no_motion
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.flow.schedule import FlowConfig
from wovr.imagine.load import DIT, REWARD, WORLD_CODEC, load_reward, load_world_model, newest
from wovr.imagine.rollout import rollout
from wovr.imagine.world import ImaginedWorld
from wovr.imagine.world_model import WorldModel, for_inference
from wovr.policy.small import SmallVLA, SmallVLAConfig
from wovr.reward.classifier import RewardClassifier, RewardClassifierConfig

HORIZON, MEMORY, IMAGE, ACTION_DIM, CHUNK = 48, 4, 64, 3, 8


def build(run: Path | None, device: str) -> tuple[ImaginedWorld, SmallVLA]:
    if run is not None:
        model = load_world_model(newest(run, WORLD_CODEC), newest(run, DIT), device)
        reward = load_reward(newest(run, REWARD), device)
        policy = load_model(run / "sft/policy.safetensors", SmallVLAConfig, SmallVLA)
    else:
        codec, context = ConvCodec(ConvCodecConfig()), ContextConfig(memory_frames=MEMORY)
        dit = ActionDiT(DiTConfig(channels=codec.channels, action_dim=ACTION_DIM), layout(context, CHUNK))
        model = WorldModel(for_inference(codec).to(device), for_inference(dit).to(device), context, FlowConfig())
        reward = RewardClassifier(RewardClassifierConfig()).to(device)
        policy = SmallVLA(SmallVLAConfig())
    reward.calibrated(threshold=1.1, hold=1)  # out of reach
    return ImaginedWorld(model, reward, HORIZON), policy.to(device)


def starts(count: int, image: int = IMAGE, action_dim: int = ACTION_DIM) -> list[StartState]:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (count, 1 + MEMORY, image, image, 3), dtype=np.uint8)
    actions = np.tile(no_motion(action_dim), (MEMORY, 1))
    task = "put the red block on the green plate"
    return [StartState(frame[0], frame[1:], actions, task, 0, "demo_0", 0, "first_frame") for frame in frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder to take the networks from")
    parser.add_argument("--batch", type=int, default=128, help="trajectories side by side")
    parser.add_argument("--chunks", type=int, default=HORIZON // CHUNK, help="chunks per trajectory")
    parser.add_argument("--repeats", type=int, default=3, help="timed rollouts")
    parser.add_argument("--out", type=Path, help="where to write the JSON beside printing it")
    arguments = parser.parse_args()

    world, policy = build(arguments.run, device())
    owners = {"policy": policy, "dit": world.model.dit, "decode": world.model.codec, "reward": world.reward}
    watch = watched(owners)
    runs = []
    for number in range(1 + arguments.repeats):
        watch.seconds.clear()
        begin = now()
        batch = rollout(
            world,
            policy,
            starts(arguments.batch // 8),
            seed=0,
            number=number,
            group_size=8,
            batch_size=arguments.batch,
            limits=[arguments.chunks * CHUNK] * (arguments.batch // 8),
        )
        seconds = now() - begin
        parts = {part: watch.seconds[part] / seconds for part in PARTS}
        runs.append((int(batch.steps_N.sum()) / seconds, parts | {"other": 1 - sum(parts.values())}))
    frames_per_second, share = sorted(runs[1:], key=lambda run: run[0])[arguments.repeats // 2]
    report = {
        "frames_per_second": round(frames_per_second, 1),
        "share": {part: round(value, 3) for part, value in share.items()},
        "all_runs": [round(rate, 1) for rate, _ in runs[1:]],
        "batch": arguments.batch,
        "chunks": arguments.chunks,
        "precision": precision(),
        "parameters": {part: sum(p.numel() for p in owner.parameters()) for part, owner in owners.items()},
    }
    write(report, arguments.out)


if __name__ == "__main__":
    main()
