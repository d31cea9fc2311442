"""Does the world model follow its actions? Held-out episodes under recorded actions and under changed ones.

From first frames, and over a few chunks alone: error grows with depth, and late errors are no longer the actions'. All
variants of a replay share its noise, so that their difference is the actions'. The base world model and the one that
PACE refined are judged apart, and so are the episodes of the base policy and those of evolved ones.

Legend: N replays, T env steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wovr.core.checkpoint import write_json
from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.imagine.load import DIT, REWARD, WORLD_CODEC, load_judge, load_world_model
from wovr.imagine.world_model import WorldModel
from wovr.metrics.action_following import (
    DECIDE,
    ActionFollowing,
    measure_action_following,
    variant_names,
    variants,
)
from wovr.metrics.video import squared_error
from wovr.reward.base import RewardModel
from wovr.stages.data import held_out_names
from wovr.stages.experiment import Workplace
from wovr.stages.hallucination import BATCH, worlds_of
from wovr.stages.replay import Replay, replay

SUMMARY = Path("action_following/summary.json")


def run(place: Workplace) -> dict[str, Any]:
    """Write `action_following/summary.json`; return whether each world model follows, and by how much.

    Both are keyed by world model (`base`, and `pace` after refinement) and by the purpose of the held-out episodes.
    """
    config, device = place.experiment, place.dist.device
    settings = config.action_following
    chosen = _choose(place)
    worlds = worlds_of(place.run.path)
    found: dict[str, dict[str, ActionFollowing]] = {}
    replays = len(variant_names(config.policy.action_dim)) * sum(map(len, chosen.values()))
    with place.log.progress("action_following", len(worlds) * replays) as bar:
        for world, folder in worlds.items():
            model = load_world_model(folder / WORLD_CODEC, folder / DIT, device)
            if settings.steps % model.chunk_length:
                raise UserError(
                    f"action_following.steps: expected a multiple of the chunk length {model.chunk_length}, "
                    f"found {settings.steps}"
                )
            reward = load_judge(config.reward.judge, folder / REWARD, folder / DIT, device)
            found[world] = {
                purpose: follow_actions(
                    model,
                    reward,
                    episodes,
                    steps=settings.steps,
                    batch_size=min(BATCH, config.rl.rollout_batch),
                    seed=config.seed,
                    advance=bar.advance,
                )
                for purpose, episodes in chosen.items()
            }
    measured = {world: {purpose: one.to_dict() for purpose, one in of.items()} for world, of in found.items()}
    write_json(place.run.path / SUMMARY, {"settings": settings.model_dump(mode="json"), "worlds": measured})
    return {world: {purpose: _headline(one) for purpose, one in of.items()} for world, of in found.items()}


def follow_actions(
    model: WorldModel,
    reward: RewardModel,
    episodes: Sequence[tuple[Episode, str]],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> ActionFollowing:
    """The first `steps` actions of each (episode, name), recorded and changed, in imagination.

    At least two episodes, none shorter; whole chunks. `advance` is called after every replay.
    """
    actions_NTA = np.stack([episode.actions_TA[:steps] for episode, _ in episodes])
    error_NT = {}
    for name, fed_NTA in variants(actions_NTA, seed).items():
        errors = []
        for one in replay(
            model,
            reward,
            episodes,
            [0] * len(episodes),
            horizon=steps,
            batch_size=batch_size,
            seed=seed,
            actions=list(fed_NTA),
        ):
            errors.append(_error(one))
            advance()
        error_NT[name] = torch.stack(errors)
    return measure_action_following(error_NT, actions_NTA, model.chunk_length, seed)


def _error(one: Replay) -> torch.Tensor:
    """Of each imagined frame (T)."""
    imagined, true = torch.from_numpy(one.imagined_THWC[1:]), torch.from_numpy(one.true_THWC[1:])
    return squared_error(imagined[None], true[None])[0]


def _choose(place: Workplace) -> dict[str, list[tuple[Episode, str]]]:
    """Held-out (episode, name) by purpose, oldest first, that are long enough. A purpose has two or is left out."""
    config, settings, store = place.experiment, place.experiment.action_following, place.episodes()
    chosen = {}
    for purpose, names in held_out_names(store, config.collect.held_out, config.refine.rounds).items():
        long = [name for name in names if store.info(name).length >= settings.steps][: settings.trajectories]
        if len(long) >= 2:  # shuffling takes two
            chosen[purpose] = [(store.open(name), name) for name in long]
        else:
            place.log.info(
                f"action_following: '{purpose}' left out, fewer than two of its {len(names)} held-out episodes have "
                f"{settings.steps} steps"
            )
    return chosen


def _headline(found: ActionFollowing) -> dict[str, Any]:
    changes = found.to_dict()["changes"]
    decide = {name: {key: changes[name][key] for key in ("difference", "told_apart")} for name in DECIDE}
    return {"follows": found.follows, "error": found.error, **decide}
