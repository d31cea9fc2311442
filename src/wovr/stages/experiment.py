"""One experiment: every stage's config in one YAML file, and what stages are given to work with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from wovr.codec.conv import ConvCodecConfig
from wovr.codec.conv_training import CodecDataConfig
from wovr.codec.wan import WanCodecConfig
from wovr.core.config import KIND, Config
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.run import RunFolder
from wovr.core.train import TrainConfig
from wovr.core.types import Episode
from wovr.dit.checkpointing import Checkpointing
from wovr.dit.context import ContextConfig
from wovr.dit.model import DiTConfig
from wovr.envs.base import Simulator
from wovr.envs.libero import Libero, LiberoConfig
from wovr.envs.recorded import RecordedConfig
from wovr.envs.tabletop import Tabletop, TabletopConfig
from wovr.episodes.store import EpisodeStore
from wovr.episodes.video import FrameMemory
from wovr.episodes.windows import WindowConfig
from wovr.flow.schedule import FlowConfig
from wovr.kir.mine import MineConfig
from wovr.policy.files import PolicyConfig
from wovr.policy.small import SmallVLAConfig
from wovr.reward.base import Judge
from wovr.reward.calibrate import CalibrationConfig
from wovr.reward.classifier import RewardClassifierConfig
from wovr.reward.joint import RewardHeadConfig
from wovr.reward.labels import LabelConfig
from wovr.reward.near import NearSuccessConfig
from wovr.stages.data import training_data
from wovr.stages.eval_config import ActionFollowingConfig, ClosedLoopConfig, EvalConfig, WorldModelEvalConfig
from wovr.stages.latents import WorldLossConfig
from wovr.stages.rl_config import RefineConfig, RLConfig


def _kind(section: Any) -> str:
    """Of a simulator's section: what it says, or the embedded one."""
    return str(section.get(KIND, "tabletop") if isinstance(section, dict) else getattr(section, KIND, section))


SimulatorConfig = Annotated[
    Annotated[TabletopConfig, Tag("tabletop")]
    | Annotated[LiberoConfig, Tag("libero")]
    | Annotated[RecordedConfig, Tag("recorded")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="expected kind tabletop, libero or recorded",
    ),
]


class SftConfig(Config):
    """Demonstrations and the fit of the base policy to them.

    The store's demonstrations are taken, as `wovr convert` brings them; where there are none, a scripted demonstrator
    makes them in the simulator.
    """

    demonstrations: int = Field(25, ge=1)
    """Per task. Few, so that the base policy has room to fail and to learn."""
    skill: float = Field(0.8, le=1)
    """Of the scripted demonstrator: 1 never errs by chance."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Constant error of its aim (x, y), table units or metres: a badly calibrated hand and eye. The base policy learns
    it too."""
    shift: int = Field(5, ge=0)
    """Pixels by which training frames are shifted at random."""
    target_sigma: float = Field(0.7, ge=0)
    """Spread of the target over neighbouring bins, in bins: exploration then stays near what was shown."""
    train: TrainConfig | None = TrainConfig(steps=600, batch_size=128, lr=1e-3, warmup_steps=30, schedule="cosine")
    """None takes the weights that `policy.pretrained` names as they are, and records no demonstrations."""


class CollectConfig(Config):
    """True rollouts of the base policy: all that world model, reward and keyframes are made from."""

    episodes: int = Field(600, ge=1)
    """Over all tasks."""
    shard: int = Field(64, ge=1)
    """Episodes that are recorded together and kept as one file: what fits into memory, and what an interruption may
    cost. 64 of 512 frames of 256 x 256 pixels are 6.4 GB."""
    success_frames: int = Field(4, ge=1)
    """Frames of success in a row that end a recorded rollout: classifier and world model see from them what success
    looks like. From `simulator.horizon` on rollouts never end early; the paper's are all of one length."""
    temperature: float = Field(1.3, gt=0)
    """Above 1 so that near-misses, which the world model must get right, abound."""
    correlation: float = Field(0.0, ge=0, lt=1)
    """Of the draws of neighbouring steps: best that of `rl.update`, so that the world model knows such motions."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share kept from all training: validation, calibration and the hallucination measures use it."""
    demonstrations: bool = True
    """Whether codec, reward and world model train on the demonstrations too."""


class CodecStageConfig(Config):
    """The codec: taken as it was pretrained, trained further, or trained from scratch."""

    pretrained: Path | None = None
    """File to start from; relative paths are looked up beside the config and in the repository's `data/`."""
    wan: WanCodecConfig | None = None
    """Wan's VAE instead of the convolutional codec; `{}` is Wan2.2's. `pretrained` is then `Wan2.2_VAE.pth`, or a
    folder or file of diffusers, and there is nothing to train."""
    model: ConvCodecConfig = ConvCodecConfig()
    """Of a codec from scratch."""
    data: CodecDataConfig = CodecDataConfig()
    train: TrainConfig | None = None
    """Fine-tuning or training; none keeps the pretrained weights."""

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if self.pretrained is None and self.train is None:
            raise ValueError("expected pretrained weights, or train settings for a codec from scratch")
        if self.wan is not None and (self.pretrained is None or self.train is not None):
            raise ValueError("wan: expected pretrained weights and train=null, since Wan's VAE is not trained here")
        return self


class RewardStageConfig(Config):
    """The success classifier, and who judges imagination."""

    judge: Judge = "classifier"
    """`classifier` or, where `world_model.reward_head` is trained, `joint`: that head. The classifier is trained either
    way: keyframes are mined and the world model is validated with it."""
    model: RewardClassifierConfig = RewardClassifierConfig()
    labels: LabelConfig = LabelConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    """Of the classifier, and of the reward head."""
    train: TrainConfig = TrainConfig(steps=600, batch_size=128, lr=1e-3, warmup_steps=30, schedule="cosine")


class OwnMemoryConfig(Config):
    """Training on memories that the network imagined itself (`wovr.stages.latents.OwnMemory`)."""

    share: float = Field(0.5, gt=0, le=1)
    """Of the windows of a batch."""
    rounds: int = Field(1, ge=1)
    """How often the memories are imagined anew, by the network as it has become: it outgrows those of its beginning."""
    train: TrainConfig
    """Of each round, which follow the training on true memories. Refinement, whose network has been trained already,
    does without."""


class WorldTrainingConfig(Config):
    """How an ActionDiT is fitted to episodes (`wovr.stages.fit_world`)."""

    context: ContextConfig = ContextConfig()
    flow: FlowConfig = FlowConfig()
    windows: WindowConfig = WindowConfig()
    mirror: tuple[int, ...] = ()
    """Action dims that point sideways, where the world is the same seen in a mirror: every episode is then learned from
    twice, as it is and as its mirror image. Empty learns from what was recorded alone (the paper)."""
    loss: WorldLossConfig = WorldLossConfig()
    train: TrainConfig = TrainConfig(
        steps=1500, batch_size=32, lr=3e-4, warmup_steps=100, schedule="cosine", ema_decay=0.999, validate_every=500
    )
    own_memory: OwnMemoryConfig | None = None
    """None trains on true memories alone (the paper)."""
    checkpointing: Checkpointing = "none"
    """Whether the backward pass computes the blocks' activations again: less memory for more time, the same results but
    for rounding. `full` keeps the input of every block alone; `selective` keeps results of matrix products too."""
    compile: bool = False
    """Whether torch compiles the blocks: a step takes 1.6 times less on two CPU cores, and the first one 40 s more. It
    asks for a C++ compiler on a CPU; with `selective` nothing is compiled."""

    @model_validator(mode="after")
    def _own_memory_is_a_group(self) -> Self:
        if self.own_memory and self.context.memory_frames == 1:
            raise ValueError("own_memory: expected a memory of 4 frames or more, found 1")
        return self


def check_mirror(mirror: tuple[int, ...], action_dim: int) -> None:
    """ValueError unless these are dims of an action, the gripper's excepted."""
    if any(not 0 <= dim < action_dim - 1 for dim in mirror):
        raise ValueError(f"mirror: expected dims from 0 to {action_dim - 2}, found {list(mirror)}")


class WorldStageConfig(WorldTrainingConfig):
    """The action-conditioned world model."""

    pretrained: Path | None = None
    """ActionDiT to start from, or Wan2.2's or WoVR's weights (a safetensors file or a folder of them); none trains from
    scratch."""
    dit: DiTConfig = DiTConfig()
    """Of a network from scratch or of Wan's or WoVR's weights; wovr's own files bring theirs, less an action channel or
    sums that are off here."""
    reward_head: RewardHeadConfig | None = None
    """A reward head that is trained with the network (`wovr.reward.joint`), `{}` for the defaults; none trains on the
    flow loss alone. It begins from scratch, whatever the pretrained network is."""


class DecoderStageConfig(Config):
    """The codec's decoder, trained on latents that the world model imagined."""

    true_fraction: float = Field(0.25, ge=0, le=1)
    """Share of latents of true frames among them."""
    train: TrainConfig | None = None
    """None keeps the codec as it is (the paper)."""


class Experiment(Config):
    """All of it. One file under configs/ per experiment."""

    seed: int = 0
    """Of every random draw: the same seed gives the same run."""
    simulator: SimulatorConfig = TabletopConfig()
    """Where rollouts are true; or, of a robot that no simulator stands for, what its recordings are."""
    policy: PolicyConfig = SmallVLAConfig()
    """What acts and is trained."""
    sft: SftConfig = SftConfig()
    collect: CollectConfig = CollectConfig()
    codec: CodecStageConfig
    reward: RewardStageConfig = RewardStageConfig()
    world_model: WorldStageConfig = WorldStageConfig()
    decoder: DecoderStageConfig = DecoderStageConfig()
    near_success: NearSuccessConfig | None = None
    """Failed episodes that nearly succeeded, drawn more often where world model and reward are trained, in refinement
    too. None draws all episodes alike (the paper)."""
    keyframes: MineConfig = MineConfig()
    rl: RLConfig = RLConfig()
    refine: RefineConfig = RefineConfig()
    eval: EvalConfig = EvalConfig()
    world_model_eval: WorldModelEvalConfig = WorldModelEvalConfig()
    action_following: ActionFollowingConfig = ActionFollowingConfig()
    closed_loop: ClosedLoopConfig = ClosedLoopConfig()
    frame_memory: float = Field(4.0, ge=0)
    """GB (1e9 bytes) of frames, recorded and reconstructed, that each process holds; others are read from disk when
    they are drawn. Nothing but speed depends on it, and it may change in a run folder."""

    @model_validator(mode="after")
    def _policy_is_made(self) -> Self:
        if self.sft.train is None and self.policy.pretrained is None:
            raise ValueError("sft.train: expected train settings, or policy.pretrained to take as it is")
        if self.policy.views == 2 and isinstance(self.simulator, TabletopConfig):
            raise ValueError("policy.views: expected 1, since the tabletop has no camera at the hand")
        return self

    @model_validator(mode="after")
    def _mirror_turns_motions(self) -> Self:
        check_mirror(self.world_model.mirror, self.policy.action_dim)
        return self

    @field_validator("world_model")
    @classmethod
    def _judge_is_trained(cls, world_model: WorldStageConfig, info: ValidationInfo) -> WorldStageConfig:
        reward: RewardStageConfig | None = info.data.get("reward")
        if reward is not None and reward.judge == "joint" and world_model.reward_head is None:
            raise ValueError("expected a reward_head, for example {}, with `reward.judge=joint`")
        return world_model

    @field_validator("decoder")
    @classmethod
    def _wan_stays_as_it_is(cls, decoder: DecoderStageConfig, info: ValidationInfo) -> DecoderStageConfig:
        codec: CodecStageConfig | None = info.data.get("codec")
        if codec is not None and codec.wan is not None and decoder.train is not None:
            raise ValueError("expected train=null with `codec.wan`, since Wan's VAE is not trained here")
        return decoder


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every stage works with."""

    experiment: Experiment
    run: RunFolder
    log: RunLog
    dist: Dist
    memory: FrameMemory = field(init=False)
    """For the frames of all episodes that are open."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory", FrameMemory(self.experiment.frame_memory * 1e9))

    def alone(self) -> Workplace:
        """The same for work that rank 0 does while the other ranks wait."""
        lone = replace(self, dist=self.dist.alone())
        object.__setattr__(lone, "memory", self.memory)  # one bound for the process
        return lone

    def simulator(self) -> Simulator:
        """A fresh true simulator, for the caller to close. UserError where there is none."""
        config = self.experiment.simulator
        if isinstance(config, RecordedConfig):
            raise UserError("simulator: expected one that can be run, found recordings alone (kind: recorded)")
        return Libero(config) if isinstance(config, LiberoConfig) else Tabletop(config)

    def training_data(self, rounds: int = 0) -> tuple[list[Episode], list[tuple[str, Episode]]]:
        """See `wovr.stages.data.training_data`. UserError where episodes do not fit the experiment's models."""
        collect, store = self.experiment.collect, self.episodes()
        store.check(self.experiment.simulator.image_size, self.experiment.policy.action_dim)
        return training_data(store, collect.held_out, demonstrations=collect.demonstrations, rounds=rounds)

    def episodes(self) -> EpisodeStore:
        """The run's episodes as they are on disk now."""
        return EpisodeStore(self.run.folder("episodes"), self.memory)
