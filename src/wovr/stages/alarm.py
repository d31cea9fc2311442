"""The alarm against reward hacking: during RL a few rollouts in truth are held against imagined ones.

Every look rolls the policy out from the same starts with the same draws, in imagination and in the true simulator, and
compares both with the first look of the phase (`wovr.metrics.alarm`). True rollouts count in the ledger. Where there is
no simulator, held-out recordings stand for it: how much likelier than at the first look the policy would act as in
successful episodes. That is a weaker witness, since recordings say nothing of what nobody has tried.

Legend: N rollouts of a look, H chunk length, K action tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wovr.core.checkpoint import read_json, write_json
from wovr.envs.chunked import ChunkedSimulator
from wovr.envs.recorded import RecordedConfig
from wovr.imagine.rollout import rollout
from wovr.metrics.alarm import AlarmConfig, Rise, is_exploited, paired_rise, weighted_rise
from wovr.policy.base import Policy
from wovr.stages.data import held_out_names
from wovr.stages.experiment import Workplace
from wovr.stages.policies import beside_frames
from wovr.stages.true_rollouts import training_starts

ROLLOUT = 2**32 - 2
"""Number of the rollouts of looks, which keys their draws: no update reaches it."""
FIRST_INIT = 1_000_000
"""Initial states that no other rollout uses."""
PURPOSE = "alarm"
"""Line of the ledger."""

Imagine = Callable[[Policy], NDArray[np.bool_]]
"""Success of a policy in imagination, from always the same first frames."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look came to."""

    update: int
    imagined_success: float
    imagined: Rise
    true: Rise
    exploited: bool

    def metrics(self) -> dict[str, float]:
        """For the log."""
        return {
            "imagined_success": self.imagined_success,
            "imagined_rise": self.imagined.value,
            "true_rise": self.true.value,
            "exploited": float(self.exploited),
        }

    def __str__(self) -> str:
        imagined, true = (f"{100 * rise.value:+.0f} points" for rise in (self.imagined, self.true))
        return (
            f"update {self.update}: success has risen by {imagined} in imagination and by {true} in truth since this "
            "phase began: the policy exploits the world model or its reward, and refinement is due (`wovr refine`)"
        )


class Alarm:
    """The looks of one phase, kept in a file, so that a phase that goes on compares with its own beginning."""

    def __init__(self, place: Workplace, name: str, path: Path, imagine: Imagine) -> None:
        """What is in `path` belongs to this phase."""
        self.place, self.name, self.path, self.imagine = place, name, path, imagine
        self.config: AlarmConfig = place.experiment.rl.alarm
        self._recordings = isinstance(place.experiment.simulator, RecordedConfig)
        self._looks: list[dict[str, Any]] = read_json(path) if path.is_file() else []

    def is_due(self, update: int, last: int) -> bool:
        """Whether to look before this update; `last` is the number of updates of the phase."""
        return self.config.action != "off" and (update % self.config.every == 0 or update == last)

    def look(self, update: int, policy: Policy) -> Verdict:
        """Roll out on rank 0, while the others wait; the same verdict on every rank."""
        self.place.dist.on_main(lambda: self._look(update, policy))
        self._looks = self.place.dist.gather(self._looks)[0]
        first, now = self._looks[0], next(look for look in self._looks if look["update"] == update)
        imagined = paired_rise(first["imagined"], now["imagined"])
        if self._recordings:
            likelier = np.asarray(now["true"]["log_prob"]) - np.asarray(first["true"]["log_prob"])
            true = weighted_rise(np.exp(likelier), now["true"]["success"])
        else:
            true = paired_rise(*_both(first["true"], now["true"]))
        verdict = Verdict(update, float(np.mean(now["imagined"])), imagined, true, is_exploited(imagined, true))
        self.place.log.metrics(f"{self.name}/alarm", update, verdict.metrics())
        of = f"{self.name}, alarm"
        self.place.log.success("imagined", of, verdict.imagined_success, step=update)
        if not self._recordings:
            kept = [won for won in now["true"] if won is not None]
            if kept:
                self.place.log.success("true", of, float(np.mean(kept)), step=update)
        if verdict.exploited:
            self.place.log.info(f"{self.name}: {verdict}")
        return verdict

    def _look(self, update: int, policy: Policy) -> None:
        if any(look["update"] == update for look in self._looks):  # before an interruption
            return
        true = self._recorded(policy) if self._recordings else self._simulated(update, policy)
        imagined = self.imagine(policy).tolist()
        self._looks.append({"update": update, "imagined": imagined, "true": true})
        write_json(self.path, self._looks)

    def _simulated(self, update: int, policy: Policy) -> list[bool | None]:
        """Success from each start; None where the simulator was lost."""
        settings = self.place.experiment.rl.update
        with closing(self.place.simulator()) as simulator:
            batch = rollout(
                ChunkedSimulator(simulator, policy.chunk_length),
                policy,
                training_starts(simulator, range(self.config.rollouts), FIRST_INIT),
                seed=self.place.experiment.seed,
                number=ROLLOUT,
                batch_size=simulator.max_batch,
                temperature=settings.temperature,
                correlation=settings.correlation,
            )
        self.place.run.add_rollouts(
            PURPOSE,
            episodes=int((~batch.lost_N).sum()),
            steps=int(batch.steps_N[~batch.lost_N].sum()),
            lost=int(batch.lost_N.sum()),
            stage=self.name,
            key=f"{PURPOSE}/{self.name}/{update}",
        )
        return [None if lost else bool(won) for lost, won in zip(batch.lost_N, batch.success_N, strict=True)]

    def _recorded(self, policy: Policy) -> dict[str, list[float]]:
        """Of each held-out episode, whether it succeeds, and the mean log-probability of its tokens: per token, or long
        episodes would outweigh all others."""
        config, store = self.place.experiment, self.place.episodes()
        held = held_out_names(store, config.collect.held_out, config.refine.rounds)
        found: dict[str, list[float]] = {"success": [], "log_prob": []}
        for name in [name for names in held.values() for name in names][: self.config.rollouts]:
            episode, H = store.open(name), policy.chunk_length
            steps = np.arange(0, len(episode) - H + 1, H)
            if not len(steps):
                continue
            chunks_BHA = np.stack([episode.actions_TA[step : step + H] for step in steps])
            log_probs_BK, _ = policy.log_probs(
                torch.from_numpy(episode.frames_THWC[steps]),
                [episode.instruction] * len(steps),
                policy.encode_actions(torch.from_numpy(chunks_BHA)),
                temperature=config.rl.update.temperature,
                **beside_frames(policy, episode, steps),
            )
            found["success"].append(float(episode.success))
            found["log_prob"].append(float(log_probs_BK.mean()))
        return found


def _both(before: list[bool | None], now: list[bool | None]) -> tuple[list[bool], list[bool]]:
    """Of the starts that neither look lost."""
    pairs = [(a, b) for a, b in zip(before, now, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]
