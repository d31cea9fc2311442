"""Make the codec of a run: the pretrained one, trained further or not, or one from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wovr.codec.conv import CodecBatches, CodecDataConfig, ConvCodec, codec_loss
from wovr.core.checkpoint import save_model
from wovr.core.dist import Dist
from wovr.core.log import RunLog
from wovr.core.seed import seed_everything
from wovr.core.train import TrainConfig, fit
from wovr.core.types import Frames
from wovr.imagine.load import CODEC, load_codec
from wovr.metrics.video import psnr
from wovr.stages.experiment import Workplace

CALIBRATION_BATCHES = 8


def run(place: Workplace) -> dict[str, Any]:
    """Write `codec/codec.safetensors`; the summary holds its PSNR on held-out frames."""
    config = place.experiment.codec
    train, held = place.training_data()
    seed_everything(place.experiment.seed)
    codec = load_codec(config.pretrained) if config.pretrained else ConvCodec(config.model)
    if config.train:
        codec = fit_codec(
            codec,
            [episode.frames_THWC for episode in train],
            config.data,
            config.train,
            seed=place.experiment.seed,
            folder=place.run.folder("codec"),
            log=place.log,
            dist=place.dist,
        )
    place.dist.on_main(lambda: save_model(place.run.path / CODEC, codec, codec.config))
    return {"psnr": reconstruction_psnr(codec.eval(), [episode.frames_THWC for _, episode in held])}


def fit_codec(
    codec: ConvCodec,
    frames: list[Frames],
    data: CodecDataConfig,
    settings: TrainConfig,
    *,
    seed: int,
    folder: Path,
    log: RunLog,
    dist: Dist,
) -> ConvCodec:
    """Train on `frames` and calibrate; pretraining calls this too."""
    batches = CodecBatches(frames, data, channels=codec.channels, batch_size=settings.batch_size, seed=seed)
    result = fit(codec, codec_loss, batches.at, settings, dist=dist, folder=folder, log=log, name="codec")
    assert isinstance(result.model, ConvCodec)
    sample = torch.cat([batches.at(settings.steps + i)["frames_BFHWC"] for i in range(CALIBRATION_BATCHES)])
    result.model.calibrate(result.model.encode_groups(sample))
    result.clean()
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
