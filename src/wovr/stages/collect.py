"""Collect true rollouts with the base policy: all that the world model learns the task from."""

from __future__ import annotations

from typing import Any

from wovr.metrics.success import Rate
from wovr.stages.data import COLLECT, names_of
from wovr.stages.experiment import Workplace
from wovr.stages.policies import acting_policy
from wovr.stages.sft import POLICY
from wovr.stages.true_rollouts import collect_episodes


def run(place: Workplace) -> dict[str, Any]:
    """Fill the store up to `collect.episodes` rollouts; an interrupted collection goes on."""
    config = place.experiment.collect
    collect_episodes(
        place,
        acting_policy(place, place.run.path / POLICY),
        config.episodes,
        purpose=COLLECT,
        name="base",
        first_init=0,
    )
    store = place.episodes()
    success = Rate.of([store.info(name).success for name in names_of(store, COLLECT)])
    return {"success": success.to_dict()}
