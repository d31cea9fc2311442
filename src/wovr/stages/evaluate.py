"""True success of the base, imagination and PACE policies on fixed initial states, paired across policies.

Where all there is are recordings, the policies act in the newest world model instead, from the first frames of held-out
episodes: imagined success, which is worth as much as the replay of these episodes (`wovr.stages.hallucination`) agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wovr.core.checkpoint import write_json
from wovr.core.errors import UserError
from wovr.core.progress import World
from wovr.core.types import SimulatorStart
from wovr.envs.chunked import ChunkedSimulator, ChunkWorld
from wovr.envs.recorded import RecordedConfig
from wovr.imagine.load import DIT, REWARD, WORLD_CODEC, load_judge, load_world_model, newest
from wovr.imagine.rollout import rollout
from wovr.imagine.world import ImaginedWorld
from wovr.kir.mine import first_frame_start
from wovr.metrics.success import PairedDifference, Rate, paired_difference
from wovr.policy.base import Policy
from wovr.stages.data import held_out_names
from wovr.stages.experiment import Workplace
from wovr.stages.policies import acting_policy
from wovr.stages.rl import IMAGINATION
from wovr.stages.rounds import last_policy
from wovr.stages.sft import POLICY

BATCH = 100
TRUE, IMAGINED = "the true simulator", "imagination"
"""Where success was measured."""

Key = tuple[int, int, int]
"""(task, initial state or held-out episode, repeat)."""
Judge = Callable[[Policy, str], list[dict[str, Any]]]
"""(policy, its name) -> its episodes."""


def run(place: Workplace) -> dict[str, Any]:
    """Write `eval/NAME.json` for every policy that exists and return rates and paired differences to the base.

    Where refinement ended with a policy that was there before it, `pace` is that one and costs no rollouts again.
    """
    policies: dict[str, Path] = {"base": place.run.path / POLICY}
    if (place.run.path / IMAGINATION).is_file():
        policies["imagination"] = place.run.path / IMAGINATION
    refined = last_policy(place)
    if refined is not None:
        policies["pace"] = refined
    recorded = isinstance(place.experiment.simulator, RecordedConfig)
    summary: dict[str, Any] = {"world": IMAGINED if recorded else TRUE}
    measured: dict[str, list[dict[str, Any]]] = {}
    with _imagined(place) if recorded else _true(place) as judge:
        for name, path in policies.items():
            same = next((other for other in measured if policies[other] == path), None)
            measured[name] = measured[same] if same else judge(acting_policy(place, path), name)
            found = _found(name, summary["world"], measured[name])
            if same:
                summary[f"{name}_is"] = same
            write_json(place.run.folder("eval") / f"{name}.json", found)
            summary[name] = rate = found["success"]
            world: World = "imagined" if recorded else "true"
            place.log.success(world, f"{name}, eval", rate["rate"], step=rate["n"], ci95=rate["ci95"])
            difference = paired(measured["base"], measured[name])
            if name != "base" and difference:
                summary[f"{name}_minus_base"] = {"difference": difference.difference, "ci95": list(difference.ci95)}
    return summary


def paired(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> PairedDifference | None:
    """b against a over the episodes that both have, None where they share none."""
    success_a, success_b = ({(e["task_id"], e["init_id"], e["repeat"]): e["success"] for e in one} for one in (a, b))
    common = [key for key in success_a if key in success_b]
    if not common:
        return None
    return paired_difference([success_a[key] for key in common], [success_b[key] for key in common])


def _found(name: str, world: str, episodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What one policy's file holds."""
    if not episodes:
        raise UserError(f"evaluate {name}: expected rollouts, found every one of them lost by the simulator")
    tasks: dict[str, list[bool]] = {}
    for episode in episodes:
        tasks.setdefault(episode["instruction"], []).append(episode["success"])
    return {
        "policy": name,
        "world": world,
        "episodes": episodes,
        "success": Rate.of([episode["success"] for episode in episodes]).to_dict(),
        "tasks": {instruction: Rate.of(success).to_dict() for instruction, success in tasks.items()},
    }


@contextmanager
def _true(place: Workplace) -> Iterator[Judge]:
    """In the true simulator: every (task, initial state, repeat), the same draws for every policy of one seed."""
    config = place.experiment.eval
    with closing(place.simulator()) as simulator:
        keys = [
            (task.task_id, init, repeat)
            for repeat in range(config.repeats)
            for init in range(config.initial_states)
            for task in simulator.tasks
        ]
        starts = [SimulatorStart(task, init) for task, init, _ in keys]

        def judge(policy: Policy, name: str) -> list[dict[str, Any]]:
            world = ChunkedSimulator(simulator, policy.chunk_length)
            episodes = _roll(place, world, policy, starts, keys, name, min(BATCH, simulator.max_batch))
            steps, lost = sum(episode["steps"] for episode in episodes), len(keys) - len(episodes)
            key = f"evaluation/{name}"
            place.run.add_rollouts("evaluation", episodes=len(episodes), steps=steps, lost=lost, stage="eval", key=key)
            return episodes

        yield judge


@contextmanager
def _imagined(place: Workplace) -> Iterator[Judge]:
    """In the newest world model: every held-out episode's first frame."""
    config, store, run = place.experiment, place.episodes(), place.run.path
    held = held_out_names(store, config.collect.held_out, config.refine.rounds)
    model = load_world_model(newest(run, WORLD_CODEC), newest(run, DIT), place.dist.device)
    reward = load_judge(config.reward.judge, newest(run, REWARD), newest(run, DIT), place.dist.device)
    world = ImaginedWorld(model, reward, config.simulator.horizon)
    names = [name for purpose in held.values() for name in purpose]
    starts, keys = [], []
    for number, name in enumerate(names):
        start = first_frame_start(store.read(name), name, model.context.memory_frames)
        for repeat in range(config.eval.repeats):
            starts.append(start)
            keys.append((start.task_id, number, repeat))

    def judge(policy: Policy, name: str) -> list[dict[str, Any]]:
        return _roll(place, world, policy, starts, keys, name, min(BATCH, config.rl.rollout_batch))

    yield judge


def _roll(
    place: Workplace,
    world: ChunkWorld[Any],
    policy: Policy,
    starts: Sequence[Any],
    keys: Sequence[Key],
    name: str,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Roll one policy out from all starts. Rollouts that the simulator lost are left out."""
    config = place.experiment.eval
    episodes: list[dict[str, Any]] = []
    with place.log.progress(f"evaluate {name}", len(keys)) as bar:
        for first in range(0, len(keys), BATCH):
            part = slice(first, first + BATCH)
            batch = rollout(
                world,
                policy,
                starts[part],
                seed=place.experiment.seed,
                number=first,
                temperature=config.temperature,
                greedy=config.greedy,
                batch_size=batch_size,
            )
            for i, (task, init, repeat) in enumerate(keys[part]):
                if not batch.lost_N[i]:
                    facts = {"task_id": task, "init_id": init, "repeat": repeat, "instruction": batch.instructions[i]}
                    episodes.append(facts | {"success": bool(batch.success_N[i]), "steps": int(batch.steps_N[i])})
            bar.advance(len(keys[part]), success=float(np.mean([e["success"] for e in episodes] or [0])))
    return episodes
