"""Mine keyframes from failed rollouts and keep them with first frames: where imagined rollouts start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wovr.core.types import StartState
from wovr.imagine.load import BANK, DIT, REWARD, load_dit, load_reward
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import first_frame_start, mine_keyframes
from wovr.stages.data import COLLECT, names_of, split
from wovr.stages.experiment import Workplace
from wovr.stages.train_reward import probabilities


def run(place: Workplace) -> dict[str, Any]:
    """Write `keyframes/bank.safetensors` from the collected episodes."""
    names, _ = split(names_of(place.episodes(), COLLECT), place.experiment.collect.held_out)
    bank = mine(place, names, place.run.path / REWARD, place.run.path / DIT)
    bank.save(place.run.path / BANK)
    return bank.reasons()


def mine(place: Workplace, names: list[str], reward: Path, dit: Path) -> KeyframeBank:
    """Keyframes of the failures and the first frame of every one of these episodes. Held-out episodes stay out."""
    store, config = place.episodes(), place.experiment
    classifier = load_reward(reward)
    memory = load_dit(dit)[1].memory_frames
    starts: list[StartState] = []
    for name in names:
        episode = store.read(name)
        starts.append(first_frame_start(episode, name, memory))
        if not episode.success:
            probability_F = probabilities(classifier, episode.frames_THWC, episode.instruction)
            starts += mine_keyframes(
                episode, name, probability_F, config=config.keyframes, memory_frames=memory, seed=config.seed
            )
    return KeyframeBank(starts)
