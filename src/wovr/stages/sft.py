"""Fit the base policy to a few demonstrations per task."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wovr.core.checkpoint import load_model, save_model
from wovr.core.seed import seed_everything, stream
from wovr.core.text import word_ids
from wovr.core.train import fit
from wovr.core.types import Episode
from wovr.core.weights import Batch
from wovr.episodes.store import EpisodeStore
from wovr.policy.small import SmallVLA, SmallVLAConfig, chunk_targets, sft_loss
from wovr.stages.data import DEMONSTRATIONS, names_of
from wovr.stages.demonstrations import record_demonstrations
from wovr.stages.experiment import Workplace

POLICY = Path("sft/policy.safetensors")


def run(place: Workplace) -> dict[str, Any]:
    """Record the demonstrations that are missing, then train; writes `sft/policy.safetensors`."""
    record_demonstrations(place)
    store, config = place.episodes(), place.experiment
    store.check(config.simulator.image_size, len(config.policy.action_low))
    episodes = [store.open(name) for name in _first_of_each_task(store, config.sft.demonstrations)]
    seed_everything(config.seed)
    policy = SmallVLA(config.policy)
    batches = DemonstrationBatches(episodes, policy, config.sft.train.batch_size, config.seed, config.sft.shift)
    result = fit(
        policy,
        lambda model, batch: sft_loss(model, batch, target_sigma=config.sft.target_sigma),
        batches.at,
        config.sft.train,
        dist=place.dist,
        folder=place.run.folder("sft"),
        log=place.log,
        name="sft",
    )
    save_model(place.run.path / POLICY, result.model, config.policy)
    result.clean()
    return {"demonstrations": len(episodes), "loss": result.history[-1]["loss"]}


def load_policy(path: Path) -> SmallVLA:
    """The embedded VLA in a file."""
    return load_model(path, SmallVLAConfig, SmallVLA).eval()


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

    def __init__(self, episodes: list[Episode], policy: SmallVLA, batch_size: int, seed: int, shift: int) -> None:
        self.batch_size, self.seed, self.shift = batch_size, seed, shift
        self.videos = [episode.frames_THWC for episode in episodes]
        places, chunks, ids = [], [], []
        for number, episode in enumerate(episodes):
            steps = int(np.argmax(episode.success_T)) + 1 if episode.success else len(episode)
            actions_TA = episode.actions_TA[:steps]
            places += [(number, t) for t in range(steps)]
            chunks += [chunk_targets(actions_TA, t, policy.chunk_length) for t in range(steps)]
            ids.append(word_ids([episode.instruction]).expand(steps, -1))
        self.places_N = places
        """(video, frame) of each sample."""
        self.tokens_NK = policy.bins.encode(torch.from_numpy(np.stack(chunks)))
        self.ids_NL = torch.cat(ids)

    def at(self, step: int) -> Batch:
        """Frames shifted by up to `shift` pixels: actions are relative motions, so a moved camera leaves them true."""
        rng = stream(self.seed, "sft-batch", step)
        rows = rng.integers(0, len(self.tokens_NK), self.batch_size)
        corners = rng.integers(0, 2 * self.shift + 1, (self.batch_size, 2))
        frames_BHWC = np.stack([self.videos[video][t] for video, t in (self.places_N[row] for row in rows)])
        height, width = frames_BHWC.shape[1:3]
        border = ((0, 0), (self.shift, self.shift), (self.shift, self.shift), (0, 0))
        wide_BHWC = np.pad(frames_BHWC, border, mode="edge")
        frames = [frame[y : y + height, x : x + width] for frame, (y, x) in zip(wide_BHWC, corners, strict=True)]
        index = torch.from_numpy(rows)
        return {
            "frames_BHWC": torch.from_numpy(np.stack(frames)),
            "instructions": self.ids_NL[index],
            "tokens_BK": self.tokens_NK[index],
        }
