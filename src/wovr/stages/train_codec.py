"""Make the codec of a run: the pretrained one, trained further or not, one from scratch, or Wan's, converted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wovr.codec.base import Codec
from wovr.codec.conv import ConvCodec
from wovr.codec.conv_training import CodecBatches, CodecDataConfig, codec_loss
from wovr.codec.wan import WanCodec
from wovr.codec.wan_weights import load_wan_codec
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.seed import seed_everything
from wovr.core.train import TrainConfig, fit
from wovr.core.types import Frames, Video
from wovr.imagine.load import CODEC, load_codec, save_codec
from wovr.imagine.world_model import for_inference
from wovr.metrics.video import psnr
from wovr.stages.experiment import CodecStageConfig, Workplace

CALIBRATION_BATCHES = 8


def run(place: Workplace) -> dict[str, Any]:
    """Write `codec/codec.safetensors`; the summary holds its PSNR on held-out frames."""
    config = place.experiment.codec
    train, held = place.training_data()
    seed_everything(place.experiment.seed)
    codec: ConvCodec | WanCodec
    if config.wan is not None and config.pretrained is not None:
        codec = load_wan_codec(config.pretrained, config.wan)
    else:
        codec = _convolutional(config)
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
    place.dist.on_main(lambda: save_codec(place.run.path / CODEC, codec))
    judged = codec.eval() if isinstance(codec, ConvCodec) else for_inference(codec).to(place.dist.device)
    return {"psnr": reconstruction_psnr(judged, [episode.frames_THWC for _, episode in held])}


def _convolutional(config: CodecStageConfig) -> ConvCodec:
    if config.pretrained is None:
        return ConvCodec(config.model)
    codec = load_codec(config.pretrained)
    if not isinstance(codec, ConvCodec):
        raise UserError(f"{config.pretrained}: expected a convolutional codec, found Wan's, which `codec.wan` is for")
    return codec


def fit_codec(
    codec: ConvCodec,
    frames: list[Video],
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
    result.model.calibrate(result.model.encode_groups(sample.to(result.model.device)))
    result.clean()
    return result.model


def reconstruct(codec: Codec, frames_THWC: Frames) -> Frames:
    """Frames as the codec gives them back, same shape: each four from the latent that they form."""
    last = len(frames_THWC) - 1
    padded = torch.from_numpy(frames_THWC)[[*range(last + 1), *[last] * (-last % codec.temporal_factor)]]
    latents_1LChw = codec.encode(padded[None].to(codec.device))
    return codec.decode_all(latents_1LChw)[0, : last + 1].cpu().numpy()


def reconstruction_psnr(codec: Codec, videos: Sequence[Video]) -> float:
    """Mean over frames, dB."""
    values = [
        psnr(torch.from_numpy(reconstruct(codec, frames_THWC))[None], torch.from_numpy(frames_THWC)[None]).mean()
        for frames_THWC in (video[:] for video in videos)
    ]
    return float(torch.stack(values).mean())
