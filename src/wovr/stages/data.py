"""Which recorded episodes a stage reads."""

from __future__ import annotations

from collections.abc import Sequence

from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.episodes.store import EpisodeStore

COLLECT, DEMONSTRATIONS = "collect", "demonstrations"
"""Purposes of the ledger; refinement round r has `refine-r`."""


def refine_purpose(number: int) -> str:
    """Ledger line of the true rollouts of refinement round `number`, counted from 1."""
    return f"refine-{number}"


def rollouts(rounds: int) -> list[str]:
    """Purposes of the policy's own rollouts: the collection and the first `rounds` refinement rounds."""
    return [COLLECT, *map(refine_purpose, range(1, rounds + 1))]


def split(names: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """(training, held-out) names: every k-th is held out, k = 1 / `held_out`. Tasks take turns in collection, so
    k coprime to their number spreads the held-out episodes over all tasks; otherwise the next k that is."""
    k = round(1 / held_out)
    k += 1 - k % 2
    kept = set(names[k - 1 :: k])
    return [name for name in names if name not in kept], [name for name in names if name in kept]


def names_of(store: EpisodeStore, purpose: str) -> list[str]:
    """Names of all episodes of one ledger line, oldest first."""
    return [name for name in store.names if store.info(name).purpose == purpose]


def held_out_names(store: EpisodeStore, held_out: float, rounds: int) -> dict[str, list[str]]:
    """Held-out names by purpose: those of the collection and of every refinement round so far. UserError for none."""
    held: dict[str, list[str]] = {}
    for purpose in rollouts(rounds):
        _, names = split(names_of(store, purpose), held_out)
        if names:
            held[purpose] = names
    if not held:
        raise UserError(f"{store.folder}: expected held-out episodes of purpose '{COLLECT}', found none")
    return held


def training_data(
    store: EpisodeStore, held_out: float, *, demonstrations: bool, rounds: int = 0
) -> tuple[list[Episode], list[tuple[str, Episode]]]:
    """What codec, reward and world model train on, and the held-out (name, episode) that judge them.

    Collected rollouts, those of the first `rounds` refinement rounds and, if asked for, the demonstrations, which are
    true rollouts that were paid for already. Raises UserError where nothing was collected, or too little to hold one
    back. Frames are read when they are asked for (`EpisodeStore.open`).
    """
    train: list[str] = names_of(store, DEMONSTRATIONS) if demonstrations else []
    held: list[str] = []
    for purpose in rollouts(rounds):
        names = names_of(store, purpose)
        if not names:
            raise UserError(f"{store.folder}: expected episodes of purpose '{purpose}', found none; collect them first")
        more, more_held = split(names, held_out)
        train, held = train + more, held + more_held
    if not held:
        raise UserError(
            f"{store.folder}: expected enough episodes to hold one back at collect.held_out={held_out:g}, "
            f"found {len(names_of(store, COLLECT))}; collect more, or hold out a larger share"
        )
    return [store.open(name) for name in train], [(name, store.open(name)) for name in held]
