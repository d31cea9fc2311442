"""Fit the base policy to a few demonstrations per task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from wovr.core.checkpoint import load_model, save_model
from wovr.core.seed import seed_everything, stream
from wovr.core.text import word_ids
from wovr.core.train import fit
from wovr.core.types import Episode, SimulatorStart
from wovr.core.weights import Batch
from wovr.envs.tabletop import Demonstrator, Tabletop, goal
from wovr.policy.small import SmallVLA, SmallVLAConfig, chunk_targets, sft_loss
from wovr.stages.data import DEMONSTRATIONS, names_of
from wovr.stages.experiment import Workplace
from wovr.stages.scripted import record
from wovr.stages.true_rollouts import training_starts

POLICY = Path("sft/policy.safetensors")
FIRST_INIT = 10_000
"""Demonstrations start from initial states that no rollout of a policy uses."""


def run(place: Workplace) -> dict[str, Any]:
    """Record the demonstrations that are missing, then train; writes `sft/policy.safetensors`."""
    _demonstrate(place)
    store, config = place.episodes(), place.experiment
    episodes = [store.read(name) for name in names_of(store, DEMONSTRATIONS)]
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


class DemonstrationBatches:
    """Chunks of demonstrations up to success; `at(step)` is a pure function of the step."""

    def __init__(self, episodes: list[Episode], policy: SmallVLA, batch_size: int, seed: int, shift: int) -> None:
        self.batch_size, self.seed, self.shift = batch_size, seed, shift
        frames, chunks, ids = [], [], []
        for episode in episodes:
            steps = int(np.argmax(episode.success_T)) + 1 if episode.success else len(episode)
            actions_TA = episode.actions_TA[:steps]
            frames.append(episode.frames_THWC[:steps])
            chunks += [chunk_targets(actions_TA, t, policy.chunk_length) for t in range(steps)]
            ids.append(word_ids([episode.instruction]).expand(steps, -1))
        border = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        self.frames_NHWC = np.pad(np.concatenate(frames), border, mode="edge")
        self.tokens_NK = policy.bins.encode(torch.from_numpy(np.stack(chunks)))
        self.ids_NL = torch.cat(ids)

    def at(self, step: int) -> Batch:
        """Frames shifted by up to `shift` pixels: actions are relative motions, so a moved camera leaves them true."""
        rng = stream(self.seed, "sft-batch", step)
        rows = rng.integers(0, len(self.tokens_NK), self.batch_size)
        corners = rng.integers(0, 2 * self.shift + 1, (self.batch_size, 2))
        height, width = (side - 2 * self.shift for side in self.frames_NHWC.shape[1:3])
        frames = [
            self.frames_NHWC[row, y : y + height, x : x + width] for row, (y, x) in zip(rows, corners, strict=True)
        ]
        index = torch.from_numpy(rows)
        return {
            "frames_BHWC": torch.from_numpy(np.stack(frames)),
            "instructions": self.ids_NL[index],
            "tokens_BK": self.tokens_NK[index],
        }


def _demonstrate(place: Workplace) -> None:
    store, simulator = place.episodes(), place.simulator()
    if names_of(store, DEMONSTRATIONS):
        return
    config = place.experiment
    starts = training_starts(simulator, config.sft.demonstrations * len(simulator.tasks), FIRST_INIT)
    episodes = demonstrate(simulator, starts, skill=config.sft.skill, offset=config.sft.offset, seed=config.seed)
    store.append(episodes)
    steps = sum(len(episode) for episode in episodes)
    place.run.add_rollouts(DEMONSTRATIONS, episodes=len(episodes), steps=steps, stage="sft", key=f"{DEMONSTRATIONS}/0")


def demonstrate(
    simulator: Tabletop, starts: list[SimulatorStart], *, skill: float, offset: tuple[float, float], seed: int
) -> list[Episode]:
    """One scripted demonstration per start, to the horizon."""
    observation = simulator.reset(starts)
    hands = [
        Demonstrator(
            goal(start.task_id)[0], plates[goal(start.task_id)[1]], skill, stream(seed, "demonstrator", i), offset
        )
        for i, (start, plates) in enumerate(zip(starts, simulator.plates_B22, strict=True))
    ]
    tasks = {task.task_id: task.instruction for task in simulator.tasks}
    return [
        Episode(
            **arrays,
            instruction=tasks[start.task_id],
            suite=simulator.suite,
            task_id=start.task_id,
            init_id=start.init_id,
            policy="demonstrator",
            seed=seed,
            purpose=DEMONSTRATIONS,
        )
        for arrays, start in zip(record(simulator, observation, hands, simulator.horizon), starts, strict=True)
    ]
