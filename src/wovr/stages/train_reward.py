"""Train the success classifier on true and reconstructed frames, and calibrate its threshold on held-out episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wovr.core.checkpoint import save_model
from wovr.core.seed import seed_everything
from wovr.core.train import TrainConfig, fit
from wovr.core.types import Episode, Video
from wovr.imagine.load import CODEC, REWARD, StoredCodec
from wovr.metrics.success import first_success
from wovr.reward.calibrate import Calibration, calibrate
from wovr.reward.classifier import RewardClassifier, reward_loss
from wovr.reward.labels import LabelledFrames
from wovr.stages.experiment import Workplace
from wovr.stages.near_success import near_weights
from wovr.stages.reconstructions import reconstructions


def run(place: Workplace) -> dict[str, Any]:
    """Write `reward/classifier.safetensors`; the summary holds what it gets wrong on held-out episodes."""
    config = place.experiment
    train, held = place.training_data()
    seed_everything(config.seed)
    model = RewardClassifier(config.reward.model)
    codec = StoredCodec(place.run.path / CODEC, place.dist.device)
    held_out = [episode for _, episode in held]
    return train_reward(place, model, codec, train, held_out, config.reward.train, place.run.path / REWARD)


def train_reward(
    place: Workplace,
    model: RewardClassifier,
    codec: StoredCodec,
    train: list[Episode],
    held_out: list[Episode],
    settings: TrainConfig,
    path: Path,
    before: Path | None = None,
) -> dict[str, Any]:
    """Train `model`, calibrate it and write it to `path`; refinement calls this too, with the one `before`."""
    config = place.experiment.reward
    weight_E, near = near_weights(place, "reward", train, before)
    drawn = reconstructions(place, codec, [*train, *held_out])
    batches = LabelledFrames(train, config.labels, place.experiment.seed, drawn[: len(train)], weight_E)
    result = fit(
        model,
        reward_loss,
        lambda step: batches.batch(step, settings.batch_size),
        settings,
        dist=place.dist,
        folder=path.parent,
        log=place.log,
        name="reward",
    )
    classifier = result.model
    assert isinstance(classifier, RewardClassifier)
    succeeded_E = np.array([episode.success for episode in held_out])
    seen = zip(drawn[len(train) :], held_out, strict=True)
    chosen = calibrate(
        [probabilities(classifier, video, episode.instruction)[1:] for video, episode in seen],
        succeeded_E,
        config.calibration,
        first_success,
    )
    classifier.calibrated(chosen.threshold, chosen.hold)
    place.dist.on_main(lambda: save_model(path, classifier, classifier.config))
    result.clean()
    true = [probabilities(classifier, episode.frames_THWC, episode.instruction)[1:] for episode in held_out]
    agreement = _agreement(classifier, true, succeeded_E)
    return {"reconstructed": _summary(chosen), "true_frames_agreement": agreement, **near}


@torch.no_grad()
def probabilities(model: RewardClassifier, video: Video, instruction: str) -> NDArray[np.float32]:
    """Success probability of every frame of one episode, (T,)."""
    frames = torch.from_numpy(np.ascontiguousarray(video[:])).to(next(model.parameters()).device)
    return model.probability(frames, [instruction] * len(frames)).cpu().numpy()


def _agreement(
    model: RewardClassifier, probability: list[NDArray[np.float32]], succeeded_E: NDArray[np.bool_]
) -> float:
    called_E = [bool(first_success(p[None], model.threshold, model.hold)[0] < len(p)) for p in probability]
    return float((np.array(called_E) == succeeded_E).mean())


def _summary(found: Calibration) -> dict[str, Any]:
    return {
        "threshold": found.threshold,
        "hold": found.hold,
        "failed": found.failed,
        "false_successes": found.false_successes,
        "succeeded": found.succeeded,
        "missed_successes": found.missed_successes,
        "agreement": found.agreement,
    }
