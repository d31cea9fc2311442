"""Rounds of refinement: where each keeps its files, which policy came out of it, and when there is no next one.

Every round opens with true rollouts of the policy that the one before trained. With `refine.min_gain` they decide:
where that policy is not so much better than the one whose rollouts opened the round before, nothing more is trained,
and the better of the two stands. The paper runs a fixed number of rounds.

The rollouts are paid for anyway, for the world model to train on; both sets are drawn at the same temperature and
correlation, from other initial states. The policy of the last round that `refine.rounds` allows meets no such test:
`wovr eval` alone says what it is worth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wovr.core.checkpoint import read_json, write_json
from wovr.metrics.success import Difference, Rate
from wovr.stages.data import names_of, refine_purpose, rollouts
from wovr.stages.experiment import Workplace
from wovr.stages.rl import IMAGINATION, kept_policies
from wovr.stages.sft import POLICY

OPENING = Path("opening.json")
"""What a round's first rollouts said, below its folder."""
ROUNDING = 1e-9
"""60 of 200 less 50 of 200 is a gain of 0.05."""


def round_folder(place: Workplace, number: int) -> Path:
    """Folder of one round, counted from 1; the run's own before them."""
    return place.run.path / "refine" / f"round_{number}" if number else place.run.path


def policy_after(place: Workplace, number: int) -> Path:
    """The policy that a round trained: 0 is RL before refinement, -1 the base policy."""
    return round_folder(place, number) / IMAGINATION if number >= 0 else place.run.path / POLICY


def last_policy(place: Workplace) -> Path | None:
    """What refinement came to: the policy after the last complete round, or the one that stands where rounds ended
    early. None where no round is complete."""
    for number in range(place.experiment.refine.rounds, 0, -1):
        opening = round_folder(place, number) / OPENING
        if opening.is_file() and "stands" in (found := read_json(opening)):
            return place.run.path / str(found["stands"])
        path = policy_after(place, number)
        if path.is_file():
            return path
    return None


def refined_policies(place: Workplace) -> dict[str, Path]:
    """Every policy of every round by name, oldest first; that of `last_policy` is `pace`, where a round made it."""
    found: dict[str, Path] = {}
    last = last_policy(place)
    for number in range(1, place.experiment.refine.rounds + 1):
        found |= kept_policies(round_folder(place, number), refine_purpose(number))
        path = policy_after(place, number)
        if path.is_file():
            found["pace" if path == last else refine_purpose(number)] = path
    return found


def open_round(place: Workplace, number: int) -> dict[str, Any]:
    """Compare the rollouts that open this round with those that opened the one before, once; they must be complete.

    `stands` in what is returned, and written to the round's folder, names the policy that stands where rounds end
    here. Nothing is compared without `refine.min_gain`.
    """
    least, path = place.experiment.refine.min_gain, round_folder(place, number) / OPENING
    if least is None:
        return {}

    def write() -> None:
        if not path.is_file():
            write_json(path, _compare(place, number, least))

    place.dist.on_main(write)
    found: dict[str, Any] = read_json(path)
    return found


def _compare(place: Workplace, number: int, least: float) -> dict[str, Any]:
    store = place.episodes()
    before, now = (
        Rate.of([store.info(name).success for name in names_of(store, purpose)]) for purpose in rollouts(number)[-2:]
    )
    gain = Difference(before, now)
    found = {"before": before.to_dict(), "success": now.to_dict(), **gain.to_dict(), "min_gain": least}
    if gain.difference >= least - ROUNDING:
        return found
    better = policy_after(place, number - 1 if gain.difference >= 0 else number - 2).relative_to(place.run.path)
    low, high = (100 * end for end in gain.ci95)
    place.log.info(
        f"refine: rounds end before round {number} trains anything: success {now} true rollouts, {before} a round "
        f"before; a gain of {100 * gain.difference:+.1f} points [{low:+.1f}, {high:+.1f}], less than "
        f"refine.min_gain={least:g}; {better} stands"
    )
    return found | {"stands": str(better)}
