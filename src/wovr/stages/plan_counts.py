"""How much there is of what the stages of a plan work on: networks, episodes, latents, frames; and their bytes."""

from __future__ import annotations

import math

from wovr.core.train import TrainConfig
from wovr.stages.experiment import Experiment
from wovr.stages.hallucination import BATCH as REPLAYED
from wovr.stages.plan_machine import GB, Machine
from wovr.stages.plan_networks import Networks

PASSES = 4
"""Arrays of an episode's size while one is encoded, reconstructed or measured."""


class Counts:
    """Of one experiment on one machine. `rounds` are those of refinement whose episodes there are."""

    def __init__(self, experiment: Experiment, machine: Machine, networks: Networks) -> None:
        self.experiment, self.machine, self.networks = experiment, machine, networks
        self.bf16 = machine.bf16("auto")  # of inference
        self.width = 2 if self.bf16 else 4
        self.acts_in_bf16 = machine.bf16(experiment.rl.update.optim.precision)
        self.horizon, self.chunk_length = experiment.simulator.horizon, experiment.policy.chunk_length
        self.chunks = math.ceil(self.horizon / self.chunk_length)  # of a trajectory
        self.long = math.ceil(min(experiment.rl.horizon or self.horizon, self.horizon) / self.chunk_length)
        self.short = math.ceil(min(experiment.rl.keyframe_steps, self.horizon) / self.chunk_length)
        self.batch = experiment.rl.rollout_batch
        self.trajectories = experiment.rl.groups * experiment.rl.update.grpo.group_size
        self.demonstrations = experiment.sft.demonstrations * experiment.simulator.num_tasks
        self.codec = networks.codec(1, bf16=self.bf16)
        networks.check(self.codec)
        self.codec_weights = self.width * sum(self.codec.parameters.values())
        self.dit_weights, self.judge_weights, self.policy_weights = (
            width * sum(networks.parameters(name).values())
            for name, width in (("world_model", self.width), ("reward", 4), ("rl", 2 if self.acts_in_bf16 else 4))
        )

    def _policies(self) -> int:
        """That are there in the end: the base policy, and of every phase of RL the last and those on the way."""
        rl, refine = self.experiment.rl, self.experiment.refine
        phases = [rl.updates, *[refine.updates] * refine.rounds]
        kept = sum((updates - 1) // rl.keep_every for updates in phases if updates) if rl.keep_every else 0
        return 1 + len(phases) + kept

    def _replayed(self) -> int:
        return min(REPLAYED, self.batch)

    def _episodes(self, rounds: int = 0) -> int:
        """That codec, reward and world model read."""
        shown = self.demonstrations * self.experiment.collect.demonstrations
        return shown + self.experiment.collect.episodes + rounds * self.experiment.refine.episodes

    def _held(self, rounds: int = 0) -> int:
        """Held-out episodes."""
        recorded = self.experiment.collect.episodes + rounds * self.experiment.refine.episodes
        return round(recorded * self.experiment.collect.held_out)

    def _latents(self, episodes: int) -> int:
        """That the world model's training keeps: of the first frame, of standing still there where the codec reads a
        stream, and of what follows."""
        still = 0 if self.codec.stride == 1 else self.networks.window.frames - 1
        world = self.experiment.world_model
        kinds = 2 if world.context.memory_frames == 1 else 1
        images = 2 if world.mirror else 1
        return images * episodes * (kinds * (1 + self.horizon // self.codec.stride) + still)

    def _latent(self) -> int:
        """Bytes of one, in bf16."""
        return 2 * self.codec.channels * (self.experiment.simulator.image_size // self.codec.spatial) ** 2

    def _frames(self, episodes: int) -> float:
        """Bytes of them, unpacked."""
        return float(episodes * (self.horizon + 1) * 3 * self.experiment.simulator.image_size**2)

    def _read(self, frames: float) -> float:
        """Host bytes where so many bytes of frames are read on demand: what each process holds, and what passes."""
        return self.machine.processes * (min(frames, self.experiment.frame_memory * GB) + PASSES * self._frames(1))

    def _reconstructed(self, rounds: int = 0) -> float:
        """Bytes on disk of what the codec gives back: what has no room in memory, all of it where ranks share it."""
        frames = self._frames(self._episodes(rounds))
        room = self.experiment.frame_memory * GB if self.machine.processes == 1 else 0.0
        return min(frames, max(0.0, 2 * frames - room))

    def _state(self, name: str, settings: TrainConfig) -> float:
        """Bytes of a training state."""
        parameters = sum(self.networks.parameters(name).values())
        return float(parameters * (4 + 8 + 4 * bool(settings.ema_decay)))

    def _saved(self, name: str, settings: TrainConfig) -> float:
        """The weights, and while they are trained two states: a new one appears before the old one goes."""
        return 2 * self._state(name, settings) + 4 * sum(self.networks.parameters(name).values())
