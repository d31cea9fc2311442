"""Reinforcement learning in imagination (4.2): imagined groups from first frames and keyframes, masked GRPO.

No true rollout is used, unless `rl.simulator` asks for the paper's online baseline, or `rl.alarm` for a look at truth.
Every rank rolls out its share of the groups, then all train together on all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from wovr.core.dist import Dist
from wovr.core.progress import World
from wovr.core.train import Trainer
from wovr.policy.base import Policy
from wovr.policy.files import PolicyModule, save_policy
from wovr.stages.alarm import ROLLOUT, Alarm
from wovr.stages.experiment import Workplace
from wovr.stages.film import FILMS, Film, is_filmed
from wovr.stages.groups import Imagination, Roll, check_ranks, true_groups
from wovr.stages.phases import Phases
from wovr.stages.policies import Acting, frozen_policy, save_trained, trained_policy
from wovr.stages.policy_update import update_policy
from wovr.stages.sft import POLICY

IMAGINATION = Path("rl/policy.safetensors")
KEPT = Path("rl/kept")
"""Policies on the way, NNNN.safetensors after so many updates."""
ALARM = "alarm.json"
SHOWN = ("success", "valid_steps", "kl_base", "frames_per_second")
"""Beside the progress bar."""

ROUND = 10_000
"""Rollout numbers of refinement round r start at r * ROUND, so that every phase has draws of its own."""


def run(place: Workplace) -> dict[str, Any]:
    """Write `rl/policy.safetensors`, the base policy after `rl.updates` updates."""
    policy = trained_policy(place.experiment, place.run.path / POLICY)
    return train_policy(
        place, policy, place.experiment.rl.updates, place.run.path / IMAGINATION, folder=place.run.path, name="rl"
    )


def train_policy(
    place: Workplace,
    policy: PolicyModule,
    updates: int,
    path: Path,
    *,
    folder: Path,
    name: str,
    number_of_round: int = 0,
) -> dict[str, Any]:
    """GRPO with the world model, reward and keyframes below `folder`; resumes at the last saved update.

    The summary is the log of the last update, and under `alarm` what the alarm said where it ended the phase. UserError
    where the ranks do not divide the groups.
    """
    config, dist = place.experiment.rl, place.dist
    check_ranks(place)
    base = frozen_policy(place, place.run.path / POLICY) if config.base_rows else None
    trainer = Trainer(policy, config.update.optim, dist, config.update.steps(updates))
    state = path.parent / "policy.state"
    metadata = trainer.resume(state)
    done = int(metadata["update"]) if metadata else 0
    phases = Phases(trainer, base, collocated=config.collocated)
    last: dict[str, Any] = {}
    warned = False
    with _worlds(place, folder, name, path, phases) as (roll, alarm), place.log.progress(name, updates, done) as bar:
        for update in range(done, updates + 1):
            acting = Acting(cast(Policy, trainer.acting()), dist, config.update.optim.precision)
            if alarm is not None and alarm.is_due(update, updates):
                with phases.rollouts():
                    verdict = alarm.look(update, acting)
                if verdict.exploited and config.alarm.action != "warn":
                    last["alarm"] = {"action": config.alarm.action, **verdict.metrics()}
                    break
            if update == updates:
                break
            number = number_of_round * ROUND + update
            film = Film(config.update.grpo.group_size) if dist.is_main and is_filmed(update, updates) else None
            with phases.rollouts():
                rollouts = roll(acting, number, film)
            shown = path.parent / FILMS / f"{update:04}.gif"
            if film is not None and film.save(shown, rollouts):
                place.log.video(name, shown, step=update)
            with phases.training():
                logs = update_policy(
                    trainer,
                    rollouts,
                    config.update,
                    seed=place.experiment.seed,
                    number=number,
                    base=base,
                    base_rows=config.base_rows,
                )
                if config.keep_every and (update + 1) % config.keep_every == 0 and update + 1 < updates:
                    _keep(trainer, path.parent / KEPT.name / f"{update + 1:04}.safetensors", dist)
            speed = float(rollouts.steps_N.sum()) / phases.seconds["rollout"]
            last = logs | phases.metrics() | {"frames_per_second": speed}
            warned = warned or _warn(place, name, update + 1, last)
            place.log.metrics(name, update + 1, last)
            world: World = "true" if config.simulator else "imagined"
            place.log.success(world, name, last["success"], step=update + 1, curve=True)
            bar.advance(1, **{key: last[key] for key in SHOWN if key in last})
            if (update + 1) % config.checkpoint_every == 0:
                trainer.save(state, update=str(update + 1))
    with phases.training():
        result = trainer.result()
        trainer.close()
    dist.on_main(lambda: save_trained(path, cast(PolicyModule, result)))
    dist.on_main(lambda: shutil.rmtree(state, ignore_errors=True))
    return last


def kept_policies(folder: Path, name: str) -> dict[str, Path]:
    """{NAME-UPDATES: file} of the policies that RL kept below `folder`, oldest first."""
    return {f"{name}-{int(path.stem)}": path for path in sorted((folder / KEPT).glob("*.safetensors"))}


def _keep(trainer: Trainer, path: Path, dist: Dist) -> None:
    result = trainer.result()
    dist.on_main(lambda: save_policy(path, result))


@contextmanager
def _worlds(
    place: Workplace, folder: Path, name: str, path: Path, phases: Phases
) -> Iterator[tuple[Roll, Alarm | None]]:
    """Where groups come from, and the alarm where it is on: the true simulator has no imagination to be fooled by."""
    if place.experiment.rl.simulator:
        with true_groups(place, name) as roll:
            yield roll, None
        return
    imagination = Imagination.load(place, folder)
    phases.add_world(imagination.modules, imagination.world.leave)
    settings = place.experiment.rl.alarm
    alarm = Alarm(place, name, path.parent / ALARM, lambda policy: imagination.look(policy, settings.rollouts, ROLLOUT))
    yield imagination.groups, alarm if settings.action != "off" else None


def _warn(place: Workplace, name: str, update: int, logs: dict[str, float]) -> bool:
    """Say so where ratios do not begin at 1."""
    gap, most = logs.get("log_prob_gap", 0.0), place.experiment.rl.largest_gap
    if gap <= most:
        return False
    place.log.info(
        f"{name}: update {update}: log-probabilities in training differ from the rollout's by {gap:.3g} nats a token, "
        f"more than rl.largest_gap={most:g}: ratios do not begin at 1; try precision fp32"
    )
    return True
