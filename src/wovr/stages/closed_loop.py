"""Hallucination in closed loop: every policy of the run acts in imagination and in truth, from the same starts.

The policies are the base policy, those that RL kept on its way (`rl.keep_every`) and the last of each phase. Starts are
initial states of the evaluation and, apart from them, keyframes, to which the simulator is brought by the recorded
actions. Draws of the policy are the same in both worlds, so that they part where the worlds do. True rollouts count in
the ledger. Where all there is are recordings, nobody can say what else a policy would have done: the stage is left out,
and the replay of recorded actions (`wovr.stages.hallucination`) stands alone.

Legend: P policies, N starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wovr.core.checkpoint import write_json
from wovr.core.types import Episode, SimulatorStart, StartState
from wovr.envs.base import Simulator
from wovr.envs.chunked import ChunkedSimulator, ChunkWorld
from wovr.envs.continued import ContinuedSimulator, RecordedStart
from wovr.envs.recorded import RecordedConfig
from wovr.imagine.load import BANK, DIT, REWARD, WORLD_CODEC, load_judge, load_world_model, newest
from wovr.imagine.rollout import RolloutBatch, rollout
from wovr.imagine.world import ImaginedWorld
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import FIRST_FRAME, first_frame_start
from wovr.kir.sampler import SamplerConfig, draw_starts
from wovr.metrics.closed_loop import correlation, success_by_depth
from wovr.metrics.hallucination import Confusion
from wovr.metrics.success import Rate
from wovr.policy.base import Policy
from wovr.stages.experiment import Workplace
from wovr.stages.hallucination import worlds_of
from wovr.stages.policies import acting_policy
from wovr.stages.replay import KEYFRAME
from wovr.stages.rl import IMAGINATION, kept_policies
from wovr.stages.rounds import refined_policies
from wovr.stages.sft import POLICY

SUMMARY = Path("closed_loop/summary.json")
ROLLOUT = 2**32 - 3
"""Number of these rollouts, which keys their draws: no update reaches it."""


@dataclass(frozen=True, slots=True)
class Starts:
    """The same N starts in both worlds."""

    imagined: list[StartState]
    true: list[RecordedStart]
    limit: int
    """Env steps."""


def run(place: Workplace) -> dict[str, Any]:
    """Write `closed_loop/summary.json`; return the correlation of imagined and true success, and agreement.

    Both are keyed by world model (`base`, and `pace` after refinement) and by kind of start.
    """
    if isinstance(place.experiment.simulator, RecordedConfig):
        place.log.info("closed_loop: left out, there is no simulator that could be held against imagination")
        return {}
    policies = _policies(place)
    worlds = worlds_of(place.run.path)
    with closing(place.simulator()) as simulator:
        starts = {FIRST_FRAME: _first_frames(place, simulator), KEYFRAME: _keyframes(place)}
        starts = {kind: one for kind, one in starts.items() if one.true}
        total = sum(len(one.true) for one in starts.values())
        with place.log.progress("closed_loop", (1 + len(worlds)) * len(policies) * total) as bar:
            true: dict[str, list[RolloutBatch]] = {kind: [] for kind in starts}
            for name, path in policies.items():
                policy = acting_policy(place, path)
                for kind, one in starts.items():
                    world = ContinuedSimulator(ChunkedSimulator(simulator, policy.chunk_length))
                    batch = _roll(place, world, policy, one.true, one.limit, simulator.max_batch)
                    _pay(place, batch, f"closed-loop/{name}/{kind}")
                    true[kind].append(batch)
                    bar.advance(len(batch))
            found: dict[str, dict[str, Any]] = {}
            for world_name, folder in worlds.items():
                model = load_world_model(folder / WORLD_CODEC, folder / DIT, place.dist.device)
                judge = place.experiment.reward.judge
                reward = load_judge(judge, folder / REWARD, folder / DIT, place.dist.device)
                imagined: dict[str, list[RolloutBatch]] = {kind: [] for kind in starts}
                for path in policies.values():
                    policy = acting_policy(place, path)
                    for kind, one in starts.items():
                        dream = ImaginedWorld(model, reward, place.experiment.simulator.horizon)
                        width = place.experiment.rl.rollout_batch
                        imagined[kind].append(_roll(place, dream, policy, one.imagined, one.limit, width))
                        bar.advance(len(one.imagined))
                found[world_name] = {
                    kind: compare(list(policies), imagined[kind], true[kind], one.limit, place.experiment.seed)
                    for kind, one in starts.items()
                }
    write_json(place.run.path / SUMMARY, {"policies": list(policies), "worlds": found})
    return {
        world: {kind: {key: one[key] for key in ("correlation", "agreement")} for kind, one in of.items()}
        for world, of in found.items()
    }


def compare(
    names: Sequence[str], imagined: Sequence[RolloutBatch], true: Sequence[RolloutBatch], limit: int, seed: int
) -> dict[str, Any]:
    """What P policies did in both worlds, without the starts at which the simulator was lost: the confusion of all
    their rollouts and of each policy's, success by depth, and the correlation over policies."""
    kept_N = ~np.any([batch.lost_N for batch in true], axis=0)
    imagined_PN, true_PN = (np.stack([batch.success_N[kept_N] for batch in side]) for side in (imagined, true))
    chunk_length = limit // imagined[0].chunk_mask_NC.shape[1]
    by_policy = {}
    for p, name in enumerate(names):
        firsts = [batch.success_step_N[kept_N] for batch in (imagined[p], true[p])]
        by_policy[name] = {
            "imagined": Rate.of(imagined_PN[p]).to_dict(),
            "true": Rate.of(true_PN[p]).to_dict(),
            **_confusion(imagined_PN[p], true_PN[p]),
            "imagined_by_depth": success_by_depth(firsts[0], limit, chunk_length),
            "true_by_depth": success_by_depth(firsts[1], limit, chunk_length),
        }
    return {
        "correlation": correlation(imagined_PN, true_PN, seed).to_dict(),
        **_confusion(imagined_PN, true_PN),
        "by_policy": by_policy,
    }


def _confusion(imagined: Any, true: Any) -> dict[str, Any]:
    return Confusion.of(torch.from_numpy(imagined.ravel()), torch.from_numpy(true.ravel())).to_dict()


def _policies(place: Workplace) -> dict[str, Path]:
    """By name, in the order in which they were made; at most `closed_loop.policies`, evenly spaced."""
    run = place.run.path
    found = {"base": run / POLICY} | kept_policies(run, "rl")
    if (run / IMAGINATION).is_file():
        found["imagination"] = run / IMAGINATION
    found |= refined_policies(place)
    most = place.experiment.closed_loop.policies
    chosen = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    names = list(found)
    return {names[i]: found[names[i]] for i in chosen}


def _first_frames(place: Workplace, simulator: Simulator) -> Starts:
    """Initial states of the evaluation, tasks in turn."""
    config = place.experiment
    tasks = list(simulator.tasks)
    count = min(config.closed_loop.first_frames, len(tasks) * simulator.num_initial_states)
    memory = _memory_frames(place)
    starts, imagined = [SimulatorStart(tasks[i % len(tasks)].task_id, i // len(tasks)) for i in range(count)], []
    for first in range(0, count, simulator.max_batch):
        part = starts[first : first + simulator.max_batch]
        seen = simulator.reset(part)
        for row, start in enumerate(part):
            task = next(task for task in tasks if task.task_id == start.task_id)
            still = Episode(
                frames_THWC=seen.frames_BHWC[row : row + 1],
                actions_TA=np.zeros((0, simulator.action_dim), np.float32),
                success_T=np.zeros(0, np.bool_),
                states_TS=seen.states_BS[row : row + 1],
                instruction=task.instruction,
                suite=simulator.suite,
                task_id=task.task_id,
                init_id=start.init_id,
                policy="",
                seed=config.seed,
                purpose="",
            )
            imagined.append(first_frame_start(still, f"{task.name}/{start.init_id}", memory))
    none_TA = np.zeros((0, simulator.action_dim), np.float32)
    return Starts(imagined, [RecordedStart(start, none_TA) for start in starts], config.simulator.horizon)


def _keyframes(place: Workplace) -> Starts:
    """Of the newest bank, those whose episode began at a known initial state."""
    config, store = place.experiment, place.episodes()
    bank = KeyframeBank.load(newest(place.run.path, BANK)) if (place.run.path / BANK).is_file() else KeyframeBank([])
    known = KeyframeBank(start for start in bank.keyframes if start.init_id >= 0)
    count = min(config.closed_loop.keyframes, len(known))
    if not count:
        return Starts([], [], 0)
    chosen = draw_starts(known, count, SamplerConfig(keyframe_fraction=1.0), seed=config.seed, update=ROLLOUT)
    true = [
        RecordedStart(SimulatorStart(start.task_id, start.init_id), store.open(start.episode).actions_TA[: start.step])
        for start in chosen
    ]
    return Starts(chosen, true, min(config.rl.keyframe_steps, config.simulator.horizon))


def _memory_frames(place: Workplace) -> int:
    return place.experiment.world_model.context.memory_frames


def _roll(
    place: Workplace, world: ChunkWorld[Any], policy: Policy, starts: Sequence[Any], limit: int, batch_size: int
) -> RolloutBatch:
    return rollout(
        world,
        policy,
        starts,
        seed=place.experiment.seed,
        number=ROLLOUT,
        batch_size=batch_size,
        temperature=place.experiment.eval.temperature,
        greedy=place.experiment.eval.greedy,
        limits=[limit] * len(starts),
    )


def _pay(place: Workplace, batch: RolloutBatch, key: str) -> None:
    lost = int(batch.lost_N.sum())
    place.run.add_rollouts(
        "evaluation",
        episodes=len(batch) - lost,
        steps=int(batch.steps_N[~batch.lost_N].sum()),
        lost=lost,
        stage="closed_loop",
        key=key,
    )
