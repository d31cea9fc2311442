"""Pretrain the small backbone that `data/pretrained/` ships: codec and ActionDiT, on undirected play.

The paper fine-tunes a video backbone that was pretrained on the world's videos; the embedded size has this instead.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from wovr.codec.conv import CodecDataConfig, ConvCodec, ConvCodecConfig
from wovr.core.checkpoint import save_model, write_json
from wovr.core.config import Config
from wovr.core.dist import Dist
from wovr.core.log import RunLog
from wovr.core.seed import seed_everything
from wovr.core.train import TrainConfig, fit
from wovr.core.types import Episode, no_motion
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.episodes.windows import WindowConfig
from wovr.flow.schedule import FlowConfig
from wovr.imagine.load import load_codec, load_dit, save_dit
from wovr.imagine.world_model import WorldModel, for_inference
from wovr.stages.experiment import OwnMemoryConfig
from wovr.stages.imagined_groups import imagine_groups
from wovr.stages.latents import LatentEpisodes, OwnMemory, WorldBatches, WorldLossConfig, check_fit, world_loss
from wovr.stages.play import play_episodes
from wovr.stages.train_codec import fit_codec


class PretrainConfig(Config):
    """What the backbone is and what it is trained on."""

    seed: int = 0
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
    context: ContextConfig = ContextConfig()
    flow: FlowConfig = FlowConfig()
    windows: WindowConfig = WindowConfig()
    loss: WorldLossConfig = WorldLossConfig()
    train: TrainConfig = TrainConfig(
        steps=20000, batch_size=32, lr=5e-4, warmup_steps=500, schedule="cosine", ema_decay=0.9995
    )
    own_memory: OwnMemoryConfig | None = None


CHUNK = 8


def run(config: PretrainConfig, folder: Path, log: RunLog, dist: Dist) -> None:
    """Write `codec.safetensors`, `dit.safetensors` and `card.json` into `folder`; resumes where it stopped.

    The weights are shipped in bf16, at half the size: whoever loads them trains on in fp32.
    """
    seed_everything(config.seed + 1)
    dit = ActionDiT(config.dit, layout(config.context, CHUNK))
    check_fit(dit, config.codec.channels, config.loss)
    folder.mkdir(parents=True, exist_ok=True)
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
        save_model(codec_path, for_inference(codec, "bf16"), config.codec)
    _train_dit(config, dit, episodes, for_inference(load_codec(codec_path)), dit_path, log, dist)
    write_json(folder / "card.json", _card(config, [codec_path, dit_path]))


def _train_dit(
    config: PretrainConfig,
    dit: ActionDiT,
    episodes: list[Episode],
    codec: ConvCodec,
    path: Path,
    log: RunLog,
    dist: Dist,
) -> None:
    data, own = LatentEpisodes(episodes, codec, log), config.own_memory
    if own is None:
        _fit_dit(config, config.train, dit, data, None, path, log, dist)
        return
    first = path.with_name("dit.first.safetensors")
    if not first.is_file():
        _fit_dit(config, config.train, dit, data, None, first, log, dist)
    dit, _, _ = load_dit(first)
    model = WorldModel(codec, for_inference(dit), config.context, config.flow)
    memory = OwnMemory(*imagine_groups(model, episodes, seed=config.seed, log=log), own.share)
    _fit_dit(config, own.train, dit, data, memory, path, log, dist)
    first.unlink()


def _fit_dit(
    config: PretrainConfig,
    settings: TrainConfig,
    dit: ActionDiT,
    data: LatentEpisodes,
    own: OwnMemory | None,
    path: Path,
    log: RunLog,
    dist: Dist,
) -> None:
    batches = WorldBatches(
        data,
        config.windows,
        config.context,
        dit.layout,
        batch_size=settings.batch_size,
        copies=config.loss.copies,
        seed=config.seed,
        own=own,
    )
    result = fit(
        dit,
        world_loss(config.context, config.flow, dit.layout, config.loss),
        batches.at,
        settings,
        dist=dist,
        folder=path.parent,
        log=log,
        name="dit",
    )
    assert isinstance(result.model, ActionDiT)
    save_dit(path, for_inference(result.model, "bf16"), config.context, config.flow)
    result.clean()


def _card(config: PretrainConfig, files: list[Path]) -> dict[str, object]:
    return {
        "command": "make pretrained",
        "licence": "Apache-2.0",
        "data": f"{config.episodes} episodes of {config.steps} steps of undirected play in the tabletop simulator, "
        f"{'with' if config.actions else 'without'} actions; other layouts than the suite's, blocks and plates in "
        "colours that the suite's do not have, no instructions, no success labels",
        "true_rollouts": {"episodes": config.episodes, "steps": config.episodes * config.steps},
        "config": config.model_dump(mode="json"),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
