"""Imagination from a run folder: which files it is made of, and how they are read.

A world model is two files, `world_model/codec.safetensors` and `world_model/dit.safetensors`; the header of the second
says for which context, flow and chunk length the network was trained. True frames are encoded by the codec in
`codec/codec.safetensors`; the world model's has the same encoder, and a decoder that has seen imagined latents.
Refinement writes newer files under `refine/round_N`; the newest serve.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from gymnasium.vector import AutoresetMode

from wovr.codec.base import Codec
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.codec.wan import WanCodec, WanCodecConfig
from wovr.codec.wan_weights import load_wan_codec
from wovr.core.checkpoint import fill, load_model, read_header, save_model, stored_tensors
from wovr.core.config import Config, validate
from wovr.core.dist import Precision, precision
from wovr.core.errors import UserError
from wovr.core.run import CONFIG, read_config
from wovr.dit.context import FRAMES_PER_LATENT, ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.flow.schedule import FlowConfig
from wovr.imagine.env import ImaginedVectorEnv
from wovr.imagine.world import ImaginedWorld
from wovr.imagine.world_model import WorldModel, for_inference
from wovr.kir.bank import KeyframeBank
from wovr.kir.sampler import SamplerConfig
from wovr.reward.base import Judge
from wovr.reward.classifier import RewardClassifier, RewardClassifierConfig
from wovr.reward.joint import RewardHead, RewardHeadConfig

CODEC = Path("codec/codec.safetensors")
WORLD_CODEC = Path("world_model/codec.safetensors")
DIT = Path("world_model/dit.safetensors")
REWARD = Path("reward/classifier.safetensors")
BANK = Path("keyframes/bank.safetensors")

HEAD = "reward_head"
"""Of the head's config in the header of a network's file, and before the names of its tensors."""
CONV, WAN = "conv", "wan"
"""`codec` in the header of a codec's file; a file without it is a convolutional one."""

C = TypeVar("C", bound=Config)


def newest(run: Path, artifact: Path) -> Path:
    """The artifact of the last refinement round that wrote it, else the run's own. UserError where there is none."""
    rounds = [path for path in (run / "refine").glob("round_*") if path.name.removeprefix("round_").isdigit()]
    rounds.sort(key=lambda path: int(path.name.removeprefix("round_")), reverse=True)
    for folder in [*rounds, run]:
        if (folder / artifact).is_file():
            return folder / artifact
    command = "train-wm" if artifact in (CODEC, WORLD_CODEC, DIT) else "run"
    raise UserError(f"{run / artifact}: expected this file, found none; run `wovr {command} CONFIG` first")


def save_dit(path: Path, dit: ActionDiT, context: ContextConfig, flow: FlowConfig) -> None:
    """Write the network, with its reward head where it has one, and all that its use depends on."""
    head = {HEAD: dit.reward_head.config.model_dump_json()} if isinstance(dit.reward_head, RewardHead) else {}
    save_model(
        path,
        dit,
        dit.config,
        context=context.model_dump_json(),
        flow=flow.model_dump_json(),
        chunk_length=str(FRAMES_PER_LATENT * dit.layout.new),
        **head,
    )


def load_dit(path: Path) -> tuple[ActionDiT, ContextConfig, FlowConfig]:
    """Read what `save_dit` wrote. UserError where the file is missing, damaged or something else."""
    header = read_header(path)
    context = _part(path, header, "context", ContextConfig)
    flow = _part(path, header, "flow", FlowConfig)
    chunk_length = header.get("chunk_length", "")
    if not chunk_length.isdigit() or int(chunk_length) % FRAMES_PER_LATENT:
        raise UserError(f"{path}: expected a multiple of 4 as 'chunk_length' in its header, found {chunk_length!r}")
    window = layout(context, int(chunk_length))

    def build(config: DiTConfig) -> ActionDiT:
        dit = ActionDiT(config, window)
        if HEAD in header:
            dit.reward_head = RewardHead(_part(path, header, HEAD, RewardHeadConfig), config.width)
        return dit

    return load_model(path, DiTConfig, build), context, flow


def save_codec(path: Path, codec: ConvCodec | WanCodec) -> None:
    """Write the codec, and which kind it is."""
    save_model(path, codec, codec.config, codec=WAN if isinstance(codec, WanCodec) else CONV)


def load_codec(path: Path) -> ConvCodec | WanCodec:
    """Read what `save_codec` wrote. UserError where the file is missing, damaged or something else."""
    header = read_header(path)
    if header.get("codec") == WAN:
        return load_wan_codec(path, _part(path, header, "config", WanCodecConfig))
    return load_model(path, ConvCodecConfig, ConvCodec)


class StoredCodec:
    """A codec on disk. What a training on latents that are kept asks of it is in the header; weights are read late."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        header = read_header(path)
        self.path, self.device = path, device
        if header.get("codec") == WAN:
            self.stride, self.channels = WanCodec.stride, _part(path, header, "config", WanCodecConfig).channels
        else:
            self.stride, self.channels = ConvCodec.stride, _part(path, header, "config", ConvCodecConfig).channels

    @cached_property
    def codec(self) -> Codec:
        """Ready for inference; read when it is first asked for."""
        return for_inference(load_codec(self.path)).to(self.device)

    @cached_property
    def digest(self) -> str:
        """Of the file and of the precision of inference: codecs of equal digest give equal latents."""
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256")
        found.update(precision().encode())
        return found.hexdigest()[:32]


def load_world_model(
    codec: Path, dit: Path, device: torch.device | str = "cpu", precision: Precision = "auto"
) -> WorldModel:
    """A world model that is ready to imagine. UserError where codec and network don't fit each other."""
    network, context, flow = load_dit(dit)
    frames = load_codec(codec)
    if frames.channels != network.config.channels:
        raise UserError(
            f"{dit}: expected {frames.channels} latent channels as in {codec}, found {network.config.channels}"
        )
    return WorldModel(
        for_inference(frames, precision).to(device), for_inference(network, precision).to(device), context, flow
    )


def load_reward(path: Path, device: torch.device | str = "cpu") -> RewardClassifier:
    """The reward classifier in a file, with its calibrated threshold."""
    return load_model(path, RewardClassifierConfig, RewardClassifier).to(device).eval().requires_grad_(False)


def has_head(dit: Path) -> bool:
    """Whether a network's file holds a reward head too."""
    return HEAD in read_header(dit)


def load_head(dit: Path, device: torch.device | str = "cpu") -> RewardHead:
    """The reward head in a network's file, in fp32, with its calibrated threshold. UserError where there is none."""
    header = read_header(dit)
    if HEAD not in header:
        raise UserError(f"{dit}: expected a reward head in it, found none; set reward.judge=classifier")
    width = _part(dit, header, "config", DiTConfig).width
    head = RewardHead(_part(dit, header, HEAD, RewardHeadConfig), width)
    tensors = {
        name.removeprefix(f"{HEAD}."): tensor.read()
        for name, tensor in stored_tensors(dit).items()
        if name.startswith(f"{HEAD}.")
    }
    fill(head, tensors, dit)
    return head.float().to(device).eval().requires_grad_(False)


def load_judge(
    judge: Judge, reward: Path, dit: Path, device: torch.device | str = "cpu"
) -> RewardClassifier | RewardHead:
    """The reward model that judges imagination: the classifier in `reward`, or the head in the network's file."""
    return load_reward(reward, device) if judge == "classifier" else load_head(dit, device)


def make_imagined(
    run: str | Path,
    num_envs: int = 1,
    *,
    max_episode_steps: int,
    keyframe_fraction: float = SamplerConfig().keyframe_fraction,
    precision: Precision = "auto",
    judge: Judge | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
) -> ImaginedVectorEnv:
    """What `gymnasium.make_vec("wovr/Imagined-v0", run=..., num_envs=...)` calls.

    Args:
        run: a run folder whose world model, reward and keyframes are made.
        num_envs: environments that step together.
        max_episode_steps: horizon in env steps, whole chunks or not.
        keyframe_fraction: share of episodes that start from keyframes.
        precision: of the world model.
        judge: `classifier` or `joint`; by default what the run's `reward.judge` says.
        autoreset_mode: next-step or disabled.
        render_mode: `rgb_array` or nothing.
    """
    folder = Path(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_world_model(newest(folder, WORLD_CODEC), newest(folder, DIT), device, precision)
    reward = load_judge(judge or _judge_of(folder), newest(folder, REWARD), newest(folder, DIT), device)
    world = ImaginedWorld(model, reward, max_episode_steps)
    return ImaginedVectorEnv(
        world,
        KeyframeBank.load(newest(folder, BANK)),
        num_envs,
        sampler=SamplerConfig(keyframe_fraction=keyframe_fraction),
        autoreset_mode=autoreset_mode,
        render_mode=render_mode,
    )


def _judge_of(run: Path) -> Judge:
    """Of a run's config; folders that were put together by hand have none."""
    config = read_config(run) if (run / CONFIG).is_file() else {}
    return "joint" if config.get("reward", {}).get("judge") == "joint" else "classifier"


def _part(path: Path, header: dict[str, str], name: str, schema: type[C]) -> C:
    try:
        raw: Any = json.loads(header[name])
    except (KeyError, ValueError):
        raise UserError(f"{path}: expected a network that wovr saved, found no '{name}' in its header") from None
    return validate(schema, raw, str(path))
