"""An experiment's networks as `wovr plan` sees them: their sizes, and what training and using them takes.

Sizes come from the config, or from the header of a pretrained file of wovr's own where there is one. No weights are
read.

Legend: B trajectories or samples, L latent frames, h w latent height and width; images are height x width x 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wovr.codec.conv import CACHED_GROUPS, GROUP, ConvCodec
from wovr.codec.conv_training import codec_loss
from wovr.codec.wan import WanCodec
from wovr.core.checkpoint import read_header
from wovr.core.config import Config, validate
from wovr.core.footprint import Footprint, Shapes
from wovr.core.text import MAX_WORDS
from wovr.core.weights import LossFn
from wovr.dit.action import positions
from wovr.dit.context import FRAMES_PER_LATENT, layout, timesteps
from wovr.dit.model import ActionDiT, WindowCache
from wovr.dit.rope import rotation
from wovr.dit.weights import is_wan
from wovr.policy.files import OPENVLA_OFT, make_policy
from wovr.policy.small import sft_loss
from wovr.reward.classifier import CACHED_FRAMES, RewardClassifier, reward_loss
from wovr.reward.joint import RewardHead
from wovr.stages.experiment import Experiment
from wovr.stages.latents import check_fit, world_loss
from wovr.stages.plan_codec import SAMPLE, Codec, Use, codec_use
from wovr.stages.policy_update import rl_loss
from wovr.stages.train_decoder import decoder_loss

ConfigT = TypeVar("ConfigT", bound=Config)
POLICY = ("sft", "rl")
"""Trainings of the policy."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """The training of one network."""

    footprint: Footprint
    """Of one micro-batch."""
    trainable: int
    frozen: int
    matrices: int
    """Of the trainable parameters, those that Muon would take."""


class Networks:
    """What `experiment` trains and uses, on a GPU or on this CPU. Nothing is run twice."""

    def __init__(self, experiment: Experiment, gpu: bool) -> None:
        self.experiment, self.gpu = experiment, gpu
        self.image = (experiment.simulator.image_size,) * 2
        self.actions = experiment.policy.action_dim
        self.adapted = getattr(experiment.policy, "lora", None) is not None
        """Whether adapters of the policy are trained, and not its weights."""
        self.layout = layout(experiment.world_model.context, experiment.policy.chunk_length)
        asked = experiment.world_model.dit
        self.dit_config = _config(experiment.world_model.pretrained, asked).reduced(asked)
        self.window = self.layout.packed(experiment.world_model.loss.chunks)
        """Of training; `layout` is that of inference."""
        self._found: dict[tuple[Any, ...], Any] = {}

    def of(self, experiment: Experiment) -> Networks:
        """Those of an experiment that differs in checkpointing, sizes of batches or averages alone."""
        networks = Networks(experiment, self.gpu)
        networks._found = self._found
        return networks

    def _once(self, key: tuple[Any, ...], find: Callable[[], T]) -> T:
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found

    def parameters(self, name: str) -> dict[str, int]:
        """By part."""

        def count() -> dict[str, int]:
            parts = {part: list(child.parameters()) for part, child in self._build(name).named_children()}
            return {part: sum(p.numel() for p in found) for part, found in parts.items() if found}

        return self._once(("parameters", name), count)

    def step(self, name: str, samples: int, *, bf16: bool, narrow: bool) -> Step:
        """One micro-batch of the training of the `world_model`, `codec`, `decoder`, `reward`, `sft` or `rl`.

        With `narrow`, weights are as wide as what is computed, and not fp32.
        """
        again = getattr(self.experiment.policy, "checkpointing", False)
        key = ("step", name, samples, bf16, narrow, self.experiment.world_model.checkpointing, again)
        narrow = narrow or (name in POLICY and self.adapted)
        return self._once(key, lambda: self._step(name, samples, bf16, bf16 and narrow))

    def _step(self, name: str, samples: int, bf16: bool, narrow: bool) -> Step:
        loss, model = self._loss(name), self._build(name).train()
        autocast = bf16 and not (narrow and name == "world_model")  # which casts what it is given itself
        with self._shapes() as shapes:
            shapes.place(model, torch.bfloat16 if narrow else None)
            footprint = shapes.training(
                model, lambda model: loss(model, self._batch(name, samples))[0].sum(), autocast=autocast
            )
        every, trained = list(model.parameters()), [p for p in model.parameters() if p.requires_grad]
        return Step(
            footprint,
            trainable=sum(p.numel() for p in trained),
            frozen=sum(p.numel() for p in every) - sum(p.numel() for p in trained),
            matrices=sum(p.numel() for p in trained if p.ndim == 2),
        )

    def chunk(self, trajectories: int, *, bf16: bool) -> Use:
        """The world model's new latents of one chunk. `kept` is what its Euler steps share."""
        return self._once(("chunk", bf16), lambda: self._chunk(SAMPLE, bf16)).times(trajectories / SAMPLE)

    def judge(self, frames: int) -> Use:
        """The reward, in fp32, on so many frames."""
        return self._rows("reward", frames, at_once=frames if self.gpu else min(frames, CACHED_FRAMES))

    def act(self, observations: int, *, bf16: bool) -> Use:
        """The policy on so many observations. The embedded one is counted in fp32, and casts as it goes."""
        large = self.experiment.policy.kind == OPENVLA_OFT
        return self._rows("rl", observations, at_once=observations, bf16=bf16 and large)

    def codec(self, trajectories: int, *, bf16: bool) -> Codec:
        """For chunks of so many trajectories at once."""
        found = self._once(("codec", bf16), lambda: self._codec(bf16))
        use = found.decode.times(trajectories)
        if self.experiment.codec.wan is None and not self.gpu:
            use = replace(use, bytes=min(use.bytes, found.decode.bytes * CACHED_GROUPS / self.layout.new))
        return replace(found, decode=replace(use, flops=found.decode.flops))

    def _codec(self, bf16: bool) -> Codec:
        model = self._build("codec").eval()
        assert isinstance(model, (ConvCodec, WanCodec))
        with self._shapes() as shapes:
            return codec_use(model, self.image, self.layout.new, shapes, bf16=bf16)

    def check(self, codec: Codec) -> None:
        """UserError where the world model does not fit this codec or its loss."""
        loss, context = self.experiment.world_model.loss, self.experiment.world_model.context
        self._once(("check", codec.channels), lambda: check_fit(self.dit(), codec.channels, loss, context))

    def _chunk(self, B: int, bf16: bool) -> Use:
        dtype, dit = torch.bfloat16 if bf16 else torch.float32, self.dit().eval()
        with self._shapes() as shapes:
            shapes.place(dit, dtype)
            window_BLChw = self._latents(B, self.layout.frames).to(dtype)
            context_BKChw = window_BLChw[:, : self.layout.context]
            actions_BTA = torch.zeros(B, self.layout.actions, self.actions)
            shared: list[WindowCache] = []
            first = shapes.inference(lambda: shared.append(dit.precompute(actions_BTA, context_BKChw)), [dit])
            times_BL, kept = timesteps(self.layout, torch.zeros(B)), _size(shared[0])
            one = shapes.inference(lambda: dit(window_BLChw, times_BL, shared[0], new_only=True), [dit])
        flops = first.flops + self.experiment.world_model.flow.steps * one.flops
        return Use(flops, max(first.peak() - kept, one.peak()), kept)

    def _rows(self, name: str, rows: int, *, at_once: int, bf16: bool = False) -> Use:
        """So many rows of frames, `at_once` side by side."""
        found = self._once(("rows", name, bf16), lambda: self._forward(name, SAMPLE, bf16))
        return Use(found.flops * rows / SAMPLE, found.bytes * at_once / SAMPLE)

    def _forward(self, name: str, rows: int, bf16: bool) -> Use:
        model = self._build(name).eval()
        with self._shapes() as shapes:
            shapes.place(model, torch.bfloat16 if bf16 else None)
            frames_BHWC, ids_BL = self._frames(rows), torch.zeros(rows, MAX_WORDS, dtype=torch.int64)
            beside = self._beside(rows) if name in POLICY else {}
            found = shapes.inference(lambda: model(frames_BHWC, ids_BL, **beside), [model])
        return Use(found.flops, found.peak())

    def dit(self) -> ActionDiT:
        """On `meta`."""
        with torch.device("meta"):
            dit = ActionDiT(self.dit_config, self.layout)
            head = self.experiment.world_model.reward_head
            dit.reward_head = None if head is None else RewardHead(head, self.dit_config.width)
        dit.checkpointing = self.experiment.world_model.checkpointing
        return dit

    def _build(self, name: str) -> nn.Module:
        """On `meta`, as its training begins."""
        experiment = self.experiment
        with torch.device("meta"):
            match name:
                case "world_model":
                    return self.dit()
                case "codec" if experiment.codec.wan is not None:
                    return WanCodec(experiment.codec.wan)
                case "codec" | "decoder":
                    codec = ConvCodec(_config(experiment.codec.pretrained, experiment.codec.model))
                    if name == "decoder":
                        codec.freeze_encoder()
                    return codec
                case "reward":
                    return RewardClassifier(experiment.reward.model)
            assert name in POLICY
            return make_policy(experiment.policy.model_copy(update={"pretrained": None}))

    def _loss(self, name: str) -> LossFn:
        world = self.experiment.world_model
        match name:
            case "world_model":
                return world_loss(world.context, world.flow, self.window, world.loss)
            case "sft":
                return partial(sft_loss, target_sigma=self.experiment.sft.target_sigma)
            case "rl":
                return rl_loss(self.experiment.rl.update)
        return {"codec": codec_loss, "decoder": decoder_loss, "reward": reward_loss}[name]

    def _batch(self, name: str, B: int) -> dict[str, Tensor]:
        """As the stage makes it, without numbers."""
        zeros = torch.zeros
        match name:
            case "world_model":
                frames_BT = zeros(B, FRAMES_PER_LATENT * self.window.new)
                labels = {"labels_BT": frames_BT, "balance_BT": frames_BT} | {
                    "instruction_BL": zeros(B, MAX_WORDS, dtype=torch.int64)
                }
                noises = self.window.context + self.experiment.world_model.loss.copies * self.window.new
                return {
                    "latents_BLChw": self._latents(B, self.window.frames),
                    "actions_BTA": zeros(B, self.window.actions, self.actions),
                    "noise_BFChw": self._latents(B, noises),
                    "uniform_BK": zeros(B, self.window.chunks),
                    "memory_uniform_B": zeros(B),
                } | (labels if self.experiment.world_model.reward_head else {})
            case "codec" | "decoder":
                latents = {"codec": "noise_BChw", "decoder": "latents_BChw"}[name]
                frames_BFHWC = zeros(B, GROUP, *self.image, 3, dtype=torch.uint8)
                return {
                    "frames_BFHWC": frames_BFHWC,
                    "weight_BHW": zeros(B, *self.image),
                    latents: self._latents(B),
                }
        policy = self.experiment.policy
        tokens = (B, policy.chunk_length * self.actions)
        seen = {"frames_BHWC": self._frames(B), "instructions": zeros(B, MAX_WORDS, dtype=torch.int64)}
        seen |= self._beside(B) if name in POLICY else {}
        match name:
            case "reward":
                return seen | {"labels_B": zeros(B)}
            case "sft":
                return seen | {"tokens_BK": zeros(tokens, dtype=torch.int64)}
        return seen | {
            "tokens_BK": zeros(tokens, dtype=torch.int64),
            "old_log_probs_BK": zeros(tokens),
            "advantage_B": zeros(B),
            "weight_B": zeros(B),
            "mask_BH": zeros(B, policy.chunk_length, dtype=torch.bool),
            "share_B": zeros(B),
        }

    def _beside(self, B: int) -> dict[str, Tensor]:
        """What the policy looks at beside the frames."""
        policy, wrist = self.experiment.policy, {"wrist_BHWC": self._frames(B)}
        numbers = policy.proprio
        return (wrist if policy.views == 2 else {}) | ({"proprio_BP": torch.zeros(B, numbers)} if numbers else {})

    def _frames(self, B: int) -> Tensor:
        return torch.zeros(B, *self.image, 3, dtype=torch.uint8)

    def _latents(self, *leading: int) -> Tensor:
        cells = self.image[0] // (ConvCodec if self.experiment.codec.wan is None else WanCodec).spatial_factor
        return torch.zeros(*leading, self.dit_config.channels, cells, cells)

    @contextmanager
    def _shapes(self) -> Iterator[Shapes]:
        """The tables that the network keeps would outlive the context, without numbers."""
        tables = (rotation, positions)
        for table in tables:
            table.cache_clear()
        try:
            with Shapes(self.gpu) as shapes:
                yield shapes
        finally:
            for table in tables:
                table.cache_clear()


def _config(path: Path | None, default: ConfigT) -> ConfigT:
    """Of the network in a pretrained file that wovr wrote; of any other, or one that is not here, `default`."""
    if path is None or not path.is_file() or path.suffix != ".safetensors" or is_wan(path):
        return default
    return validate(type(default), json.loads(read_header(path)["config"]), str(path))


def _size(cache: WindowCache) -> float:
    """Bytes of its tensors; views of one storage count once."""
    pairs = [*cache.actions, *cache.context]
    tensors = [tensor for pair in pairs for tensor in pair]
    tensors += [] if cache.adaln_BLD is None else [cache.adaln_BLD]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return float(sum(storages.values()))
