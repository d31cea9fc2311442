"""Fit the base policy to a few demonstrations per task."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from wovr.core.seed import seed_everything, stream
from wovr.core.train import fit
from wovr.core.types import Episode, Frames
from wovr.core.weights import Batch
from wovr.episodes.store import EpisodeStore
from wovr.policy.files import PolicyModule, make_policy, save_policy
from wovr.policy.small import chunk_targets, sft_loss
from wovr.stages.data import DEMONSTRATIONS, names_of
from wovr.stages.demonstrations import record_demonstrations
from wovr.stages.experiment import Workplace
from wovr.stages.policies import beside_frames, save_trained, weights_dtype

POLICY = Path("sft/policy.safetensors")


def run(place: Workplace) -> dict[str, Any]:
    """Record the demonstrations that are missing, then train; writes `sft/policy.safetensors`.

    Where `sft.train` is None, the published weights are taken as they are.
    """
    config, settings = place.experiment, place.experiment.sft.train
    if settings is None:
        place.dist.on_main(lambda: save_policy(place.run.path / POLICY, make_policy(config.policy, torch.bfloat16)))
        return {}
    place.dist.on_main(lambda: record_demonstrations(place))
    store = place.episodes()
    store.check(config.simulator.image_size, config.policy.action_dim)
    episodes = [store.open(name) for name in _first_of_each_task(store, config.sft.demonstrations)]
    seed_everything(config.seed)
    policy = make_policy(config.policy, weights_dtype(config, settings.precision))
    batches = DemonstrationBatches(episodes, policy, settings.batch_size, config.seed, config.sft.shift)
    result = fit(
        policy,
        lambda model, batch: sft_loss(model, batch, target_sigma=config.sft.target_sigma),
        batches.at,
        settings,
        dist=place.dist,
        folder=place.run.folder("sft"),
        log=place.log,
        name="sft",
    )
    place.dist.on_main(lambda: save_trained(place.run.path / POLICY, cast(PolicyModule, result.model)))
    result.clean()
    return {"demonstrations": len(episodes), "loss": result.history[-1]["loss"]}


def _first_of_each_task(store: EpisodeStore, count: int) -> list[str]:
    """Names of the first `count` demonstrations of every task, oldest first."""
    taken: Counter[str] = Counter()
    names = []
    for name in names_of(store, DEMONSTRATIONS):
        task = store.info(name).instruction
        if taken[task] < count:
            names.append(name)
        taken[task] += 1
    return names


class DemonstrationBatches:
    """Chunks of demonstrations up to success; `at(step)` is a pure function of the step."""

    def __init__(self, episodes: list[Episode], policy: PolicyModule, batch_size: int, seed: int, shift: int) -> None:
        """UserError where the episodes lack what the policy looks at."""
        self.batch_size, self.seed, self.shift = batch_size, seed, shift
        self.episodes, self.policy = episodes, policy
        places, chunks = [], []
        for number, episode in enumerate(episodes):
            steps = int(np.argmax(episode.success_T)) + 1 if episode.success else len(episode)
            actions_TA = episode.actions_TA[:steps]
            places += [(number, t) for t in range(steps)]
            chunks += [chunk_targets(actions_TA, t, policy.chunk_length) for t in range(steps)]
        self.places_N = places
        """(episode, frame) of each sample."""
        self.tokens_NK = policy.encode_actions(torch.from_numpy(np.stack(chunks)))
        for episode in episodes:
            beside_frames(policy, episode, np.zeros(1, dtype=np.int64))

    def at(self, step: int) -> Batch:
        """Frames shifted by up to `shift` pixels: actions are relative motions, so a moved camera leaves them true."""
        rng = stream(self.seed, "sft-batch", step)
        rows = rng.integers(0, len(self.tokens_NK), self.batch_size)
        corners = rng.integers(0, 2 * self.shift + 1, (self.batch_size, 2))
        drawn = [(self.episodes[episode], t) for episode, t in (self.places_N[row] for row in rows)]
        frames_BHWC = np.stack([episode.frames_THWC[t] for episode, t in drawn])
        beside = [beside_frames(self.policy, episode, np.array([t])) for episode, t in drawn]
        more = {name: torch.cat([one[name] for one in beside]) for name in beside[0]}
        if "wrist_BHWC" in more:
            more["wrist_BHWC"] = torch.from_numpy(self._shifted(more["wrist_BHWC"].numpy(), corners))
        return {
            "frames_BHWC": torch.from_numpy(self._shifted(frames_BHWC, corners)),
            "instructions": self.policy.encode_instructions([episode.instruction for episode, _ in drawn]),
            "tokens_BK": self.tokens_NK[torch.from_numpy(rows)],
            **more,
        }

    def _shifted(self, frames_BHWC: Frames, corners: NDArray[np.int64]) -> Frames:
        height, width = frames_BHWC.shape[1:3]
        border = ((0, 0), (self.shift, self.shift), (self.shift, self.shift), (0, 0))
        wide_BHWC = np.pad(frames_BHWC, border, mode="edge")
        return np.stack(
            [frame[y : y + height, x : x + width] for frame, (y, x) in zip(wide_BHWC, corners, strict=True)]
        )
