"""Pretrain the small backbone that `data/pretrained/` ships: codec and ActionDiT, on undirected play.

The paper fine-tunes a video backbone that was pretrained on the world's videos; the embedded size has this instead.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.codec.conv_training import CodecDataConfig
from wovr.core.checkpoint import link_file, read_header, read_json, write_json
from wovr.core.dist import Dist
from wovr.core.log import RunLog
from wovr.core.seed import seed_everything
from wovr.core.train import TrainConfig
from wovr.core.types import no_motion
from wovr.dit.context import layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.episodes.mirror import with_mirror_images
from wovr.imagine.load import StoredCodec, save_codec
from wovr.imagine.world_model import for_inference
from wovr.stages.experiment import WorldTrainingConfig, check_mirror
from wovr.stages.fit_world import WorldTraining, part_name
from wovr.stages.latents import LatentEpisodes, check_fit
from wovr.stages.play import play_episodes
from wovr.stages.train_codec import fit_codec


class PretrainConfig(WorldTrainingConfig):
    """What the backbone is and what it is trained on."""

    seed: int = 0
    """Of every random draw."""
    pretrained: Path | None = None
    """Folder of an earlier pretraining to go on from: its codec is taken, and its network trains on with `own_memory`
    alone."""
    episodes: int = Field(4000, ge=1)
    """Episodes of play."""
    steps: int = Field(48, ge=8)
    """Env steps each."""
    actions: bool = True
    """Whether the ActionDiT is told the actions of the play. Without them it learns from videos alone."""
    codec_episodes: int = Field(1500, ge=1)
    """Episodes, the first ones, that the codec sees: it learns shapes and colours, not dynamics."""
    codec: ConvCodecConfig = ConvCodecConfig()
    codec_data: CodecDataConfig = CodecDataConfig()
    codec_train: TrainConfig = TrainConfig(steps=6000, batch_size=32, lr=2e-3, warmup_steps=200, schedule="cosine")
    dit: DiTConfig = DiTConfig(channels=ConvCodecConfig().channels)
    train: TrainConfig = TrainConfig(
        steps=20000, batch_size=32, lr=5e-4, warmup_steps=500, schedule="cosine", ema_decay=0.9995
    )

    @model_validator(mode="after")
    def _there_is_more_to_do(self) -> Self:
        if self.pretrained is not None and self.own_memory is None:
            raise ValueError("pretrained: expected own_memory settings, with which training goes on, found none")
        return self

    @model_validator(mode="after")
    def _mirror_turns_motions(self) -> Self:
        check_mirror(self.mirror, self.dit.action_dim)
        return self

    @model_validator(mode="after")
    def _episodes_hold_a_clip(self) -> Self:
        clip = CHUNK * self.loss.chunks
        if self.steps < clip:
            raise ValueError(f"steps: expected {clip} or more for loss.chunks={self.loss.chunks}, found {self.steps}")
        return self


CHUNK = 8


def run(config: PretrainConfig, folder: Path, log: RunLog, dist: Dist) -> None:
    """Write `codec.safetensors`, `dit.safetensors` and `card.json` into `folder`; resumes where it stopped.

    The weights are shipped in bf16, at half the size: whoever loads them trains on in fp32.
    """
    seed_everything(config.seed + 1)
    dit = ActionDiT(config.dit, layout(config.context, CHUNK))
    check_fit(dit, config.codec.channels, config.loss, config.context)
    folder.mkdir(parents=True, exist_ok=True)
    if config.pretrained is not None:
        _take_over(config.pretrained, folder)
    episodes = play_episodes(config.episodes, config.steps, seed=config.seed, log=log)
    if not config.actions:
        still_TA = np.tile(no_motion(config.dit.action_dim), (config.steps, 1))
        episodes = [replace(episode, actions_TA=still_TA) for episode in episodes]
    codec_path, dit_path = folder / "codec.safetensors", folder / "dit.safetensors"
    if not codec_path.is_file():
        seed_everything(config.seed)
        codec = fit_codec(
            ConvCodec(config.codec),
            [episode.frames_THWC for episode in episodes[: config.codec_episodes]],
            config.codec_data,
            config.codec_train,
            seed=config.seed,
            folder=folder,
            log=log,
            dist=dist,
        )
        save_codec(codec_path, for_inference(codec, "bf16"))
    stored = StoredCodec(codec_path, dist.device)
    episodes = with_mirror_images(episodes, config.mirror)
    data = LatentEpisodes(episodes, stored, log, config.context, CHUNK * config.loss.chunks)
    WorldTraining(config, stored, data, config.seed, dist, log, precision="bf16").run(dit, dit_path)
    write_json(folder / "card.json", _card(config, [codec_path, dit_path]))


def _take_over(pretrained: Path, folder: Path) -> None:
    """The codec, and the network as one that has trained on true memories. UserError where one is missing."""
    for name, taken in (("codec.safetensors", "codec.safetensors"), ("dit.safetensors", part_name(0))):
        read_header(pretrained / name)
        if not (folder / taken).is_file() and not (folder / "dit.safetensors").is_file():
            link_file(folder / taken, pretrained / name)


def _card(config: PretrainConfig, files: list[Path]) -> dict[str, object]:
    earlier = read_json(config.pretrained / "card.json") if config.pretrained else {}
    before = [*earlier.get("before", []), earlier["config"]] if earlier else []
    settings = config.model_dump(mode="json")
    told = ("with" if config.actions else "without") + " actions"
    told += " and with their mirror images" if config.mirror else ""
    episodes, steps = Counter[int](), Counter[int]()  # by seed: episode i of one is the same in every training
    for one in (*before, settings):
        episodes |= Counter({one["seed"]: one["episodes"]})
        steps |= Counter({one["seed"]: one["episodes"] * one["steps"]})
    return {
        "command": "make pretrained",
        "licence": "Apache-2.0",
        "data": f"{config.episodes} episodes of {config.steps} steps of undirected play in the tabletop simulator, "
        f"{told}; other layouts than the suite's, blocks and plates in colours that the suite's do not have, no "
        "instructions, no success labels",
        "before": before,
        "true_rollouts": {"episodes": episodes.total(), "steps": steps.total()},
        "config": settings,
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
