"""Hallucination of the world model: the recorded actions of held-out episodes are replayed in imagination.

Both worlds start from the same frames and take the same actions, open loop, so that every difference is the world
model's. Rollouts from first frames and from keyframes are judged apart, and so are the base world model and the one
that PACE refined.

Legend: N replays, T env steps of the horizon.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wovr.core.checkpoint import write_json
from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.types import Episode
from wovr.imagine.load import DIT, REWARD, WORLD_CODEC, load_judge, load_world_model, newest
from wovr.imagine.world_model import WorldModel
from wovr.kir.mine import FIRST_FRAME
from wovr.metrics.hallucination import HallucinationReport, measure_hallucination
from wovr.metrics.video import psnr
from wovr.reward.base import RewardModel
from wovr.stages.data import held_out_names
from wovr.stages.experiment import Workplace
from wovr.stages.pictures import save_film
from wovr.stages.replay import OUTCOMES, Replay, replay, save_replays

SUMMARY = Path("hallucination/summary.json")
EXAMPLES = Path("hallucination/examples.safetensors")
FILMS = Path("hallucination/films")
"""The same examples to be looked at: truth on the left, imagination on the right."""
MAX_EXAMPLES = 6
BATCH = 64
"""Replays side by side, or `rl.rollout_batch` where it is less."""


class Measurement:
    """Gathers replays one at a time, so that their frames need not stay in memory."""

    def __init__(self, horizon: int, chunk_length: int) -> None:
        self.horizon, self.chunk_length = horizon, chunk_length
        self._kinds: list[str] = []
        self._firsts: list[tuple[int, int]] = []
        self._psnr: list[torch.Tensor] = []
        self._gaps: list[torch.Tensor] = []

    def add(self, replayed: Replay) -> None:
        """Count one replay; what a shorter one lacks to the horizon counts as neither success nor error."""
        steps = len(replayed.probability_T)
        psnr_T, gap_T = torch.full((2, self.horizon), math.nan, dtype=torch.float64)
        imagined, true = torch.from_numpy(replayed.imagined_THWC[1:]), torch.from_numpy(replayed.true_THWC[1:])
        psnr_T[:steps] = psnr(imagined[None], true[None])[0]
        gap_T[:steps] = torch.from_numpy(np.abs(replayed.probability_T - replayed.true_probability_T))
        imagined_first, true_first = (
            first if first < steps else self.horizon for first in (replayed.imagined_first, replayed.true_first)
        )
        self._kinds.append(replayed.kind)
        self._firsts.append((imagined_first, true_first))
        self._psnr.append(psnr_T)
        self._gaps.append(gap_T)

    def report(self) -> HallucinationReport:
        """All replays so far. UserError where there is none."""
        if not self._kinds:
            raise UserError(f"held-out episodes: expected at least one of {self.chunk_length} steps, found none")
        imagined_N, true_N = torch.tensor(self._firsts).unbind(dim=1)
        return measure_hallucination(
            imagined_N, true_N, torch.stack(self._psnr), torch.stack(self._gaps), self._kinds, self.chunk_length
        )


def replay_agreement(
    model: WorldModel,
    reward: RewardModel,
    episodes: Sequence[tuple[Episode, str]],
    start_steps: Sequence[int],
    *,
    horizon: int,
    batch_size: int,
    seed: int,
) -> HallucinationReport:
    """`replay`, measured. UserError where no episode can be replayed."""
    measurement = Measurement(horizon, model.chunk_length)
    for one in replay(model, reward, episodes, start_steps, horizon=horizon, batch_size=batch_size, seed=seed):
        measurement.add(one)
    return measurement.report()


def run(place: Workplace) -> dict[str, Any]:
    """Write `hallucination/summary.json` and a few examples; return agreement and false success.

    Both are keyed by world model (`base`, and `pace` after refinement) and by the purpose of the held-out episodes.
    """
    held = _held_out(place)
    worlds = worlds_of(place.run.path)
    found: dict[str, dict[str, HallucinationReport]] = {}
    with place.log.progress("hallucination", len(worlds) * sum(map(len, held.values()))) as bar:
        for world, folder in worlds.items():
            model = load_world_model(folder / WORLD_CODEC, folder / DIT, place.dist.device)
            reward = load_judge(place.experiment.reward.judge, folder / REWARD, folder / DIT, place.dist.device)
            examples: dict[str, list[Replay]] = {outcome: [] for outcome in OUTCOMES}  # those of the newest world stay
            found[world] = {}
            for purpose, episodes in held.items():
                report = found[world][purpose] = _measure(place, model, reward, episodes, examples)
                bar.advance(len(episodes), agreement=report.overall.confusion.agreement.rate)
    chosen = _in_turn(list(examples.values()))[:MAX_EXAMPLES]
    save_replays(place.run.path / EXAMPLES, chosen)
    for number, one in enumerate(chosen, start=1):
        path = place.run.path / FILMS / f"{number}.gif"
        save_film(path, [(one.true_THWC, one.true_first), (one.imagined_THWC, one.imagined_first)])
        place.log.video(f"true beside imagined {number}", path, step=number)
    write_json(
        place.run.path / SUMMARY,
        {world: {purpose: report.to_dict() for purpose, report in of.items()} for world, of in found.items()},
    )
    return {world: {purpose: _headline(report) for purpose, report in of.items()} for world, of in found.items()}


def worlds_of(run: Path) -> dict[str, Path]:
    """Folders of the base world model and, where there is one, of the last that refinement made."""
    last = newest(run, DIT).parents[1]
    return {"base": run} if last == run else {"base": run, "pace": last}


def _held_out(place: Workplace) -> dict[str, list[tuple[Episode, str]]]:
    """Held-out (episode, name) by purpose."""
    store, config = place.episodes(), place.experiment
    held = held_out_names(store, config.collect.held_out, config.refine.rounds)
    return {purpose: [(store.open(name), name) for name in names] for purpose, names in held.items()}


def _measure(
    place: Workplace,
    model: WorldModel,
    reward: RewardModel,
    episodes: list[tuple[Episode, str]],
    examples: dict[str, list[Replay]],
) -> HallucinationReport:
    """Each episode from its first frame, and from one later frame where it has one that can serve."""
    config = place.experiment
    measurement = Measurement(config.simulator.horizon, model.chunk_length)
    later = [
        (one, step)
        for i, one in enumerate(episodes)
        if (step := keyframe_step(one[0], model.chunk_length, config.keyframes.min_steps_left, config.seed, i))
    ]
    first = [(one, 0) for one in episodes]
    for starts, horizon in ((first, config.simulator.horizon), (later, config.rl.keyframe_steps)):
        chosen, steps = [one for one, _ in starts], [step for _, step in starts]
        horizon = min(horizon, config.simulator.horizon)
        batch = min(BATCH, config.rl.rollout_batch)
        for one in replay(model, reward, chosen, steps, horizon=horizon, batch_size=batch, seed=config.seed):
            measurement.add(one)
            if one.kind == FIRST_FRAME and len(examples[one.outcome]) < MAX_EXAMPLES:
                examples[one.outcome].append(one)
    return measurement.report()


def keyframe_step(episode: Episode, chunk_length: int, min_steps_left: int, seed: int, number: int) -> int:
    """A step at random from which to replay episode `number`; 0 where none is before success and early enough.

    One per episode, so that the rates' intervals count independent rollouts. Successes and failures alike, unlike
    mined keyframes, so that both kinds of error can be seen. Whole chunks on: a hold is not cut off at the end.
    """
    last = len(episode) - min_steps_left
    if episode.success:
        last = min(last, int(episode.success_T.argmax()))
    steps = np.arange(chunk_length, last + 1, chunk_length)
    return int(stream(seed, "replay-starts", number).choice(steps)) if len(steps) else 0


def _in_turn(lists: list[list[Replay]]) -> list[Replay]:
    """The first of every list, then the second of every list, and so on."""
    return [one for row in itertools.zip_longest(*lists) for one in row if one is not None]


def _headline(report: HallucinationReport) -> dict[str, Any]:
    return {
        kind: {
            "agreement": start.confusion.agreement.to_dict(),
            "false_success_rate": start.confusion.false_success_rate.to_dict(),
        }
        for kind, start in report.by_start.items()
    }
