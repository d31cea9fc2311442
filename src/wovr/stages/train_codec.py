"""Make the codec of a run: the pretrained one, trained further or not, or one from scratch."""

from __future__ import annotations

from typing import Any

import torch

from wovr.codec.conv import CodecBatches, ConvCodec, codec_loss
from wovr.core.checkpoint import save_model
from wovr.core.errors import UserError
from wovr.core.seed import seed_everything
from wovr.core.train import TrainConfig, fit
from wovr.core.types import Frames
from wovr.imagine.load import CODEC, load_codec
from wovr.metrics.video import psnr
from wovr.stages.data import COLLECT, load_split
from wovr.stages.experiment import CodecStageConfig, Workplace

CALIBRATION_BATCHES = 8


def run(place: Workplace) -> dict[str, Any]:
    """Write `world_model/codec.safetensors`; the summary holds its PSNR on held-out frames."""
    config = place.experiment.codec
    train, held = load_split(place.episodes(), COLLECT, place.experiment.collect.held_out)
    seed_everything(place.experiment.seed)
    codec = load_codec(config.pretrained) if config.pretrained else ConvCodec(config.model)
    if config.train:
        codec = fit_codec(place, codec, [episode.frames_THWC for episode in train], config, config.train)
    elif not config.pretrained:
        raise UserError("key 'codec.train': expected training settings for a codec from scratch, found none")
    save_model(place.run.path / CODEC, codec, codec.config)
    return {"psnr": reconstruction_psnr(codec.eval(), [episode.frames_THWC for _, episode in held])}


def fit_codec(
    place: Workplace, codec: ConvCodec, frames: list[Frames], config: CodecStageConfig, train: TrainConfig
) -> ConvCodec:
    """Train on `frames` and calibrate; also used by pretraining's card test."""
    batches = CodecBatches(
        frames, config.data, channels=codec.channels, batch_size=train.batch_size, seed=place.experiment.seed
    )
    folder = place.run.folder("world_model")
    result = fit(codec, codec_loss, batches.at, train, dist=place.dist, folder=folder, log=place.log, name="codec")
    assert isinstance(result.model, ConvCodec)
    sample = torch.cat([batches.at(train.steps + i)["frames_BFHWC"] for i in range(CALIBRATION_BATCHES)])
    result.model.calibrate(result.model.encode_groups(sample))
    result.state.unlink(missing_ok=True)
    return result.model


def reconstruct(codec: ConvCodec, frames_THWC: Frames) -> Frames:
    """Frames as the codec gives them back, same shape: each chunk of four from the group that they form."""
    steps = len(frames_THWC) - 1
    padded = torch.from_numpy(frames_THWC)[[*range(steps + 1), *[steps] * (-steps % 4)]]
    latents_1LChw = codec.encode(padded[None].to(codec.device))
    decoded = codec.decode(latents_1LChw)[0].cpu().numpy()
    return decoded[3 : 3 + steps + 1]  # the still first frame is decoded four times


def reconstruction_psnr(codec: ConvCodec, frames: list[Frames]) -> float:
    """Mean over frames, dB."""
    values = [
        psnr(torch.from_numpy(reconstruct(codec, frames_THWC))[None], torch.from_numpy(frames_THWC)[None]).mean()
        for frames_THWC in frames
    ]
    return float(torch.stack(values).mean())
