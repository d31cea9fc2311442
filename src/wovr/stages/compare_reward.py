"""How good are the reward models? The classifier and, where one is trained, the joint head, on held-out episodes.

Each judges true frames, and those that are imagined from the first frame under the recorded actions, whose truth is
that of the recording at the same step. What a judge loses from the first to the second is the world model's error and
its own blindness to it. The base world model and the one that PACE refined are judged apart, each with its own reward
models, and so are the episodes of the base policy and those of evolved ones.

Legend: T env steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wovr.core.checkpoint import write_json
from wovr.core.types import Episode
from wovr.imagine.load import DIT, REWARD, WORLD_CODEC, has_head, load_judge, load_world_model
from wovr.imagine.world_model import WorldModel
from wovr.metrics.reward_quality import RewardQuality, measure_reward
from wovr.reward.base import Judge, RewardModel
from wovr.stages.data import held_out_names
from wovr.stages.experiment import Workplace
from wovr.stages.hallucination import BATCH, worlds_of
from wovr.stages.replay import replay

SUMMARY = Path("compare_reward/summary.json")
TRUE, IMAGINED = "true", "imagined"
"""Frames that are judged."""


def run(place: Workplace) -> dict[str, Any]:
    """Write `compare_reward/summary.json`; return agreement about episodes, and the Brier score.

    Keyed by world model (`base`, and `pace` after refinement), purpose of the episodes, judge and kind of frames.
    """
    config, store, device = place.experiment, place.episodes(), place.dist.device
    held = {
        purpose: [(store.open(name), name) for name in names]
        for purpose, names in held_out_names(store, config.collect.held_out, config.refine.rounds).items()
    }
    worlds = worlds_of(place.run.path)
    judges = {world: judges_of(folder) for world, folder in worlds.items()}
    found: dict[str, dict[str, Any]] = {}
    with place.log.progress("compare_reward", sum(map(len, judges.values())) * sum(map(len, held.values()))) as bar:
        for world, folder in worlds.items():
            model = load_world_model(folder / WORLD_CODEC, folder / DIT, device)
            found[world] = {purpose: {} for purpose in held}
            for judge in judges[world]:
                reward = load_judge(judge, folder / REWARD, folder / DIT, device)
                for purpose, episodes in held.items():
                    measured = judge_reward(
                        model,
                        reward,
                        episodes,
                        horizon=config.simulator.horizon,
                        batch_size=min(BATCH, config.rl.rollout_batch),
                        seed=config.seed,
                        advance=bar.advance,
                    )
                    if measured:
                        found[world][purpose][judge] = {name: one.to_dict() for name, one in measured.items()}
    write_json(place.run.path / SUMMARY, found)
    return {world: {purpose: _headlines(of) for purpose, of in named.items()} for world, named in found.items()}


def judges_of(folder: Path) -> list[Judge]:
    """The reward models that there are of the world model below `folder`."""
    return ["classifier", "joint"] if has_head(folder / DIT) else ["classifier"]


def judge_reward(
    model: WorldModel,
    reward: RewardModel,
    episodes: Sequence[tuple[Episode, str]],
    *,
    horizon: int,
    batch_size: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, RewardQuality]:
    """`reward` on the frames of each (episode, name), and on their imagination; empty where all are shorter than a
    chunk. Both cover the same whole chunks. `advance` is called after every episode."""
    success = {name: episode.success_T for episode, name in episodes}
    seen: dict[str, list[Any]] = {TRUE: [], IMAGINED: []}
    truth = []
    for one in replay(model, reward, episodes, [0] * len(episodes), horizon=horizon, batch_size=batch_size, seed=seed):
        seen[TRUE].append(one.true_probability_T)
        seen[IMAGINED].append(one.probability_T)
        truth.append(np.asarray(success[one.episode][: len(one.probability_T)]))
        advance()
    if not truth:
        return {}
    return {name: measure_reward(found, truth, reward.threshold, reward.hold) for name, found in seen.items()}


def _headlines(of: Mapping[str, Any]) -> dict[str, Any]:
    return {
        judge: {
            name: {"agreement": one["episodes"]["agreement"], "brier": one["brier"]} for name, one in by_frames.items()
        }
        for judge, by_frames in of.items()
    }
