"""Fine-tune (or train) the ActionDiT on collected rollouts; held-out agreement about success says how good it is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wovr.codec.base import Codec
from wovr.core.checkpoint import read_json
from wovr.core.seed import seed_everything, stream
from wovr.core.types import Episode
from wovr.dit.context import layout
from wovr.dit.model import ACTION_PARTS, ActionDiT
from wovr.dit.weights import is_wan, load_wan
from wovr.episodes.mirror import with_mirror_images
from wovr.imagine.load import CODEC, DIT, REWARD, StoredCodec, load_dit, load_reward
from wovr.imagine.world_model import WorldModel, served
from wovr.reward.classifier import RewardClassifier
from wovr.reward.joint import RewardHead
from wovr.stages.calibrate_head import calibrate_head
from wovr.stages.experiment import Workplace
from wovr.stages.fit_world import Validation, WorldTraining
from wovr.stages.hallucination import BATCH, replay_agreement
from wovr.stages.latents import LatentEpisodes
from wovr.stages.near_success import near_weights

VALIDATION_EPISODES = 60


def run(place: Workplace) -> dict[str, Any]:
    """Write `world_model/dit.safetensors`; the summary holds the open-loop validation on held-out episodes."""
    config, path = place.experiment, place.run.path / DIT
    train, held = place.training_data()
    seed_everything(config.seed)
    codec = StoredCodec(place.run.path / CODEC, place.dist.device)
    dit = backbone(place)
    judge = validator(place, codec, load_reward(place.run.path / REWARD, place.dist.device), held)
    weight_E, near = near_weights(place, "world_model", train, place.run.path / REWARD)
    return world_training(place, train, codec, held, weight_E).run(dit, path, judge) | near


def world_training(
    place: Workplace,
    episodes: list[Episode],
    codec: StoredCodec,
    held: list[tuple[str, Episode]],
    weight_E: NDArray[np.float64] | None,
) -> WorldTraining:
    """The training of the run's world model on these episodes, so weighted; refinement uses it too. A reward head is
    calibrated on those that are held out."""
    settings = place.experiment.world_model
    if settings.mirror and weight_E is not None:
        weight_E = np.tile(weight_E, 2)
    data = LatentEpisodes(
        with_mirror_images(episodes, settings.mirror),
        codec,
        place.log,
        settings.context,
        place.experiment.policy.chunk_length * settings.loss.chunks,
        folder=place.run.folder("latents"),
        dist=place.dist,
    )
    return WorldTraining(
        settings,
        codec,
        data,
        place.experiment.seed,
        place.dist,
        place.log,
        weight_E=weight_E,
        calibrate=lambda dit: calibrate_head(place, dit, codec, held),
    )


def backbone(place: Workplace) -> ActionDiT:
    """The network before training, with a new reward head where one is asked for. What pretraining cost in true
    rollouts, by the weights' card, goes to the ledger.

    A pretrained network may have had another context, or have an action channel or sums that `dit` switches off.
    """
    dit, head = _network(place), place.experiment.world_model.reward_head
    dit.reward_head = None if head is None else RewardHead(head, dit.config.width)
    return dit


def _network(place: Workplace) -> ActionDiT:
    settings = place.experiment.world_model
    window = layout(settings.context, place.experiment.policy.chunk_length)
    if settings.pretrained is None:
        return ActionDiT(settings.dit, window)
    if is_wan(settings.pretrained):
        return load_wan(settings.pretrained, settings.dit, window)
    dit, context, _ = load_dit(settings.pretrained)
    config = dit.config.reduced(settings.dit)
    if dit.layout != window or config != dit.config or context.actions != settings.context.actions:
        had = ", ".join(f"{part}={getattr(dit.config, part)}" for part in ACTION_PARTS)
        pretrained, dit = dit, ActionDiT(config, window)
        fresh = _take_over(dit, pretrained)
        place.log.info(
            f"world model: {settings.pretrained} was trained with memory_frames={context.memory_frames}, "
            f"reference={context.reference}, actions={context.actions}, {had}: what fits of it is where training "
            f"begins; from scratch: {', '.join(fresh) or 'nothing'}"
        )
    card = settings.pretrained.parent / "card.json"
    spent = read_json(card).get("true_rollouts") if card.is_file() else None
    if spent:
        place.run.add_rollouts("pretraining", **spent, stage="world_model", key="pretraining")
    return dit


def _take_over(dit: ActionDiT, pretrained: ActionDiT) -> list[str]:
    """Load the layers that are the same in both; returns the others' names, which stay as they are."""
    weights, mine = pretrained.state_dict(), dit.state_dict()
    fresh = {name.rpartition(".")[0] for name, value in mine.items() if weights[name].shape != value.shape}
    kept = {name: mine[name] if name.rpartition(".")[0] in fresh else weights[name] for name in mine}
    dit.load_state_dict(kept)
    return sorted(fresh)


def validator(
    place: Workplace, codec: StoredCodec, reward: RewardClassifier, held: list[tuple[str, Episode]]
) -> Validation | None:
    """`validation` of a network on some of the held-out episodes; None where there are none."""
    chosen = validation_episodes(place, held)
    return (lambda dit: validation(place, dit, codec.codec, reward, chosen)) if chosen else None


def validation_episodes(place: Workplace, held: list[tuple[str, Episode]]) -> list[tuple[str, Episode]]:
    """Those of the held-out episodes that judge the world model while it trains."""
    rng = stream(place.experiment.seed, "validation-episodes")
    return [held[i] for i in sorted(rng.permutation(len(held))[:VALIDATION_EPISODES])]


def validation(
    place: Workplace, dit: nn.Module, codec: Codec, reward: RewardClassifier, held: list[tuple[str, Episode]]
) -> dict[str, float]:
    """Open loop from o_0 under recorded actions: agreement about success, false success, PSNR."""
    assert isinstance(dit, ActionDiT)
    config = place.experiment.world_model
    model = WorldModel(codec, served(dit).to(codec.device), config.context, config.flow)
    # What was compiled for training's shapes would be compiled again for every other.
    with torch.compiler.set_stance("force_eager") if config.compile else nullcontext():
        report = replay_agreement(
            model,
            reward,
            [(episode, name) for name, episode in held],
            [0] * len(held),
            horizon=place.experiment.simulator.horizon,
            batch_size=min(BATCH, place.experiment.rl.rollout_batch),
            seed=place.experiment.seed,
        )
    confusion = report.overall.confusion
    return {
        "agreement": confusion.agreement.rate,
        "false_success": confusion.false_success_rate.rate,
        "false_failure": confusion.false_failure_rate.rate,
        "psnr_first_chunk": report.overall.psnr_by_depth[0],
        "psnr_last_chunk": report.overall.psnr_by_depth[-1],
    }
