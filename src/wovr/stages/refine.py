"""PACE (4.3): a few true rollouts of the evolved policy bring world model, reward and keyframes back to it.

Each round trains on the mixture of all rollouts so far, mines the new failures and goes on with RL. How many rounds
there are, true success may decide (`wovr.stages.rounds`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wovr.core.train import TrainConfig
from wovr.imagine.load import BANK, CODEC, DIT, REWARD, WORLD_CODEC, StoredCodec, load_dit, load_reward, newest
from wovr.kir.bank import KeyframeBank
from wovr.stages import keyframes
from wovr.stages.data import names_of, refine_purpose, split
from wovr.stages.experiment import Workplace
from wovr.stages.near_success import near_weights
from wovr.stages.policies import acting_policy, trained_policy
from wovr.stages.rl import IMAGINATION, train_policy
from wovr.stages.rounds import open_round, round_folder
from wovr.stages.train_decoder import train_decoder
from wovr.stages.train_reward import train_reward
from wovr.stages.train_wm import validator, world_training
from wovr.stages.true_rollouts import collect_episodes

FIRST_INIT = 1000
"""Round r collects from initial states r * FIRST_INIT on, which no other round sees."""


def run(place: Workplace) -> dict[str, Any]:
    """All rounds, or those up to one that the alarm stops or that `refine.min_gain` says not to train any more; a round
    or part of one that is complete is skipped."""
    summary: dict[str, Any] = {}
    for number in range(1, place.experiment.refine.rounds + 1):
        summary[f"round_{number}"] = found = _round(place, number)
        if "stands" in found.get("opening", {}):
            break
        alarm = found.get("rl", {}).get("alarm", {})
        if alarm.get("action") == "stop":
            summary["alarm"] = alarm
            break
    return summary


def _round(place: Workplace, number: int) -> dict[str, Any]:
    config, folder, before = place.experiment, round_folder(place, number), round_folder(place, number - 1)
    purpose = refine_purpose(number)
    place.dist.on_main(
        lambda: collect_episodes(
            place.alone(),
            acting_policy(place, before / IMAGINATION),
            config.refine.episodes,
            purpose=purpose,
            name=f"rl-round-{number - 1}",
            first_init=number * FIRST_INIT,
        )
    )
    opening = open_round(place, number)
    summary: dict[str, Any] = {"opening": opening} if opening else {}
    if "stands" in opening:
        return summary
    if not (folder / WORLD_CODEC).is_file():
        summary |= _refine_models(place, number, before, folder)
    place.dist.on_main(lambda: _mine_again(place, purpose, before, folder))
    if not (folder / IMAGINATION).is_file():
        summary["rl"] = train_policy(
            place,
            trained_policy(config, before / IMAGINATION),
            config.refine.updates,
            folder / IMAGINATION,
            folder=folder,
            name=f"{purpose}/rl",
            number_of_round=number,
        )
    return summary


def _refine_models(place: Workplace, number: int, before: Path, folder: Path) -> dict[str, Any]:
    """Reward first, since the world model's validation is agreement about success. The decoder comes last."""
    config = place.experiment
    rate = config.refine.rate
    train, held = place.training_data(rounds=number)
    codec = StoredCodec(place.run.path / CODEC, place.dist.device)
    summary: dict[str, Any] = {}
    if not (folder / DIT).is_file():
        summary["reward"] = train_reward(
            place,
            load_reward(before / REWARD).train().requires_grad_(True),
            codec,
            train,
            [episode for _, episode in held],
            _gentler(config.reward.train, config.refine.reward_steps, rate),
            folder / REWARD,
            before / REWARD,
        )
        weight_E, near = near_weights(place, "world_model", train, folder / REWARD)
        dit, _, _ = load_dit(before / DIT)
        own = config.world_model.own_memory
        summary["world_model"] = near | world_training(place, train, codec, held, weight_E).phase(
            dit,
            _gentler(config.world_model.train, config.refine.world_steps, rate),
            folder / DIT,
            validator(place, codec, load_reward(folder / REWARD, place.dist.device), held),
            own=own.share if own else 0.0,
        )
    decoder = config.decoder.train and _gentler(config.decoder.train, config.refine.decoder_steps, rate)
    summary["decoder"] = train_decoder(place, before / WORLD_CODEC, folder, train, held, decoder)
    return summary


def _gentler(settings: TrainConfig, steps: int, rate: float) -> TrainConfig:
    rates = {"lr": rate * settings.lr, "muon_lr": rate * settings.muon_lr}
    return settings.model_copy(update={"steps": steps, **rates})


def _mine_again(place: Workplace, purpose: str, before: Path, folder: Path) -> None:
    """Keyframes of the new failures; first frames of the new and the older rollouts. Not again where they are there."""
    if (folder / BANK).is_file():
        return
    names, _ = split(names_of(place.episodes(), purpose), place.experiment.collect.held_out)
    new = keyframes.mine(place, names, folder / REWARD, folder / DIT)
    old = KeyframeBank.load(newest(before, BANK))
    KeyframeBank([*new, *old.first_frames]).save(folder / BANK)
