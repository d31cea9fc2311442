"""Which training episodes are near-successes: the reward's probabilities and the simulator's states, brought together.

The stages come in this order: reward, world model. So the world model's episodes are judged by the reward that is
trained already, and the reward's own by the one before it: in its first training there is none, and states alone tell.
What a classifier was trained on it knows: probabilities of such failures are lower than those of new ones.

LIBERO's states are MuJoCo's, from which only its own simulator knows where things are: no distance is read from them.

Legend: E episodes, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wovr.core.types import Episode
from wovr.envs.tabletop import Tabletop, goal_distance
from wovr.imagine.load import load_reward
from wovr.reward.near import find_near_successes
from wovr.stages.experiment import Workplace


def near_weights(
    place: Workplace, name: str, episodes: Sequence[Episode], classifier: Path | None
) -> tuple[NDArray[np.float64] | None, dict[str, Any]]:
    """(E,) how many times likelier each of the episodes that `name` trains on is drawn, by the classifier in that file
    where there is one, and what its summary says of them; nothing where it is not asked for.

    Ranks share the work and find the same.
    """
    config = place.experiment.near_success
    if config is None:
        return None, {}
    peak_E = None
    if classifier is not None and config.probability is not None:
        peak_E = _peaks(place, episodes, classifier)
    distance_E = None if config.margin is None else _distances(episodes)
    found = find_near_successes(np.array([not episode.success for episode in episodes]), peak_E, distance_E, config)
    counts = found.summary()
    place.log.info(f"{name}: {counts['near_successes']} of {counts['failed']} failed episodes nearly succeeded")
    return found.weights(config.weight), {"near_success": counts}


def _peaks(place: Workplace, episodes: Sequence[Episode], classifier: Path) -> NDArray[np.float32]:
    """Highest success probability of each episode, NaN for those that succeed, which nobody asks for."""
    dist, reward = place.dist, load_reward(classifier, place.dist.device)
    own = episodes[dist.rank :: dist.world_size]
    mine = np.full(len(own), np.nan, dtype=np.float32)
    with place.log.progress("find near-successes", len(own)) as bar:
        for i, episode in enumerate(own):
            if not episode.success:
                frames = torch.from_numpy(np.ascontiguousarray(episode.frames_THWC[:])).to(dist.device)
                mine[i] = float(reward.probability(frames, [episode.instruction] * len(frames)).max())
            bar.advance()
    peak_E = np.empty(len(episodes), dtype=np.float32)
    for rank, part in enumerate(dist.gather(mine)):
        peak_E[rank :: dist.world_size] = part
    return peak_E


def _distances(episodes: Sequence[Episode]) -> NDArray[np.float64] | None:
    """Least distance of each episode's object from its goal, NaN where its state does not tell; None if none does."""
    least = [np.nan if distance_F is None else float(distance_F.min()) for distance_F in map(_distance, episodes)]
    return None if np.isnan(least).all() else np.array(least)


def _distance(episode: Episode) -> NDArray[np.float64] | None:
    if episode.suite != Tabletop.suite:
        return None
    return goal_distance(episode.task_id, episode.init_id, episode.states_TS)
