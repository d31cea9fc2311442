"""The stages as `wovr plan` sees them: what each trains, encodes and imagines, in which parts, and what it keeps.

Upper bounds where a run decides: episodes and trajectories last to the horizon, every group of RL carries a signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from wovr.core.errors import UserError
from wovr.core.train import TrainConfig
from wovr.dit.context import FRAMES_PER_LATENT
from wovr.metrics.action_following import variant_names
from wovr.stages.hallucination import BATCH as REPLAYED
from wovr.stages.imagined_groups import BATCH as STRETCHES
from wovr.stages.imagined_groups import CHUNKS
from wovr.stages.plan_codec import Use
from wovr.stages.plan_counts import Counts
from wovr.stages.plan_machine import PCIE, Trained, step_seconds, training_memory
from wovr.stages.plan_networks import POLICY
from wovr.stages.plan_parts import Memory, Part, StagePlan
from wovr.stages.train_wm import VALIDATION_EPISODES

POLICIES = 3
"""Base, after imagination, after PACE: what evaluation compares."""


class Stages(Counts):
    """Puts the parts of each stage together. `rounds` are those of refinement whose episodes there are."""

    def all(self) -> Iterator[StagePlan]:
        """In the order in which they run."""
        config, parameters = self.experiment, self.networks.parameters
        sft, collect, reward, rl = config.sft.train, config.collect, config.reward.train, config.rl
        yield self._sft(sft)
        yield StagePlan("collect", {}, [self._act(collect.episodes)], self._frames(collect.episodes))
        yield self._codec()
        disk = self._saved("reward", reward) + self._reconstructed()
        yield StagePlan("reward", parameters("reward"), self._reward(reward), disk)
        world = config.world_model.train
        latents = self._latents(self._episodes()) * self._latent()
        yield StagePlan(
            "world_model",
            parameters("world_model"),
            self._world_model(world),
            self._saved("world_model", world) + latents,
        )
        yield self._drawing()
        judged, frames = self.networks.judge(REPLAYED), collect.episodes * (self.horizon + 1)
        flops = judged.flops * frames / REPLAYED
        yield StagePlan(
            "keyframes", {}, [self._use("mine", Memory(self.judge_weights, activations=judged.bytes), flops)], 0
        )
        yield StagePlan("rl", parameters("rl"), self._rl(rl.updates), self._saved("rl", self._rl_training(rl.updates)))
        yield self._refine()
        evaluated = config.simulator.num_tasks * config.eval.initial_states * config.eval.repeats
        yield StagePlan("eval", {}, [self._act(POLICIES * evaluated)], 0)
        worlds, held = 2 if config.refine.rounds else 1, self._held(config.refine.rounds)
        chunks, host = worlds * held * (self.chunks + self.short), self._read(self._frames(held))
        yield StagePlan("hallucination", {}, [self._imagine("replay", chunks, self._replayed(), host=host)], 0)
        closed, acting = config.closed_loop, min(config.closed_loop.policies, self._policies())
        chunks = worlds * acting * (closed.first_frames * self.chunks + closed.keyframes * self.short)
        yield StagePlan("closed_loop", {}, [self._imagine("roll out", chunks, self.batch, acts=True)], 0)
        videos, kinds = config.world_model_eval, 1 + config.refine.rounds
        longest = max((h for h in videos.horizons if h <= self.horizon), default=0)
        imagined = worlds * kinds * min(videos.trajectories, held // kinds) * longest / self.chunk_length
        host = self._read(self._frames(videos.batch_size))
        yield StagePlan("world_model_eval", {}, [self._imagine("imagine", imagined, videos.batch_size, host=host)], 0)
        following, variants = config.action_following, len(variant_names(config.policy.action_dim))
        replays = worlds * kinds * min(following.trajectories, held // kinds) * variants
        imagined, host = replays * following.steps / self.chunk_length, self._read(self._frames(self._replayed()))
        yield StagePlan("action_following", {}, [self._imagine("replay", imagined, self._replayed(), host=host)], 0)
        judges = 2 if config.world_model.reward_head else 1
        chunks, host = judges * worlds * held * self.chunks, self._read(self._frames(held))
        yield StagePlan("compare_reward", {}, [self._imagine("replay", chunks, self._replayed(), host=host)], 0)

    def _sft(self, settings: TrainConfig | None) -> StagePlan:
        if settings is None:  # published weights, in bf16
            weights = 2.0 * sum(self.networks.parameters("sft").values())
            return StagePlan("sft", {}, [Part("copy", Memory(host=weights), 0, 0)], weights)
        return StagePlan(
            "sft",
            self.networks.parameters("sft"),
            [self.training("sft", settings, host=self._read(self._frames(self.demonstrations)))],
            self._saved("sft", settings) + self._frames(self.demonstrations),
        )

    def _codec(self) -> StagePlan:
        settings, host = self.experiment.codec.train, self._read(self._frames(self._episodes()))
        seen = self._reconstruct(self._held(), host)
        if settings is None:
            return StagePlan("codec", {}, [seen], float(self.codec_weights / self.width * 4))
        return StagePlan(
            "codec",
            self.networks.parameters("codec"),
            [self.training("codec", settings, host=host), seen],
            self._saved("codec", settings),
        )

    def _reward(self, settings: TrainConfig, rounds: int = 0) -> list[Part]:
        host = self._read(2 * self._frames(self._episodes(rounds)))  # true and reconstructed
        seen = self._reconstruct(self._episodes(rounds), host, shared=True)
        return [seen, self.training("reward", settings, host=host, frozen=self.codec_weights)]

    def _world_model(self, settings: TrainConfig, rounds: int = 0) -> list[Part]:
        """Refinement trains in one phase."""
        config = self.experiment.world_model
        latents = self._latents(self._episodes(rounds))
        host = self._read(self._frames(self._episodes(rounds))) + self.machine.processes * latents * self._latent()
        new = self._latents(self.experiment.refine.episodes) if rounds else latents
        memory = Memory(self.codec_weights, activations=self.codec.encode.bytes, host=host)
        parts = [self._use("encode", memory, new * self.codec.encode.flops, "training", shared=True)]
        phases = [settings] if rounds or not config.own_memory else [settings, config.own_memory.train]
        for number, train in enumerate(phases):
            if config.own_memory and (rounds or number):
                parts.append(
                    self._stretches(train.steps * round(config.own_memory.share * train.batch_size), host, rounds)
                )
            # What validates lies beside it from the beginning.
            parts.append(self.training("world_model", train, host=host, frozen=self.codec_weights + self.judge_weights))
            last = number == len(phases) - 1
            times = math.ceil(train.steps / train.validate_every) if train.validate_every else int(last)
            if times and self._held(rounds):
                parts.append(self._validate(train, parts[-1].memory, times, rounds))
        return parts

    def _drawing(self) -> StagePlan:
        settings = self.experiment.decoder.train
        disk = 0.0 if settings is None else self._saved("decoder", settings)  # else it is the codec's file
        parameters = {} if settings is None else self.networks.parameters("decoder")
        return StagePlan("decoder", parameters, self._decoder(settings), disk)

    def _decoder(self, settings: TrainConfig | None, rounds: int = 0) -> list[Part]:
        host, parts = self._read(self._frames(self._episodes(rounds))), []
        if settings is not None:
            frozen = self.dit_weights + self.codec_weights
            parts.append(self._stretches(settings.steps * settings.batch_size, host, rounds))
            parts.append(self.training("decoder", settings, host=host, frozen=frozen))
        chunks = min(VALIDATION_EPISODES, self._held(rounds)) * self.chunks
        return [*parts, self._imagine("validate", chunks, self._replayed(), host=host)]

    def _rl(self, updates: int) -> list[Part]:
        config = self.experiment.rl
        frame = 3 * self.experiment.simulator.image_size**2
        frame *= self.experiment.policy.views
        host = float(self.machine.processes * self.trajectories * self.long * frame)  # what the policy saw
        train, base = self._rl_training(updates), self.policy_weights * bool(config.base_rows)
        if config.simulator:
            acted = self._act(updates * self.trajectories, shared=True)
            return [acted, self.training("rl", train, host=host, frozen=base)]
        short = config.starts.keyframe_fraction
        chunks = updates * self.trajectories * (short * self.short + (1 - short) * self.long)
        starts = updates * config.groups * (2 * self.codec.encode.flops + self.codec.start_flops)
        batch = min(self.batch, self.trajectories)
        rolled = self._imagine("imagine", chunks, batch, acts=True, more=starts, host=host, shared=True)
        world = rolled.memory.weights - self.policy_weights
        trained = self.training("rl", train, host=host, frozen=base if config.collocated else base + world)
        if config.collocated:
            return self._placed(rolled, trained, world, base, updates)
        beside = replace(rolled.memory, weights=trained.memory.weights, optimizer=trained.memory.optimizer)
        return [replace(rolled, memory=beside), trained]

    def _placed(self, rolled: Part, trained: Part, world: float, base: float, updates: int) -> list[Part]:
        """Collocated: what one phase does not need waits on the host, where all of it has a place of its own."""
        states = trained.memory.optimizer
        waits = self.machine.processes * (world + base + states)
        policy = trained.memory.weights - base
        rolling = replace(rolled.memory, weights=world + policy, host=rolled.memory.host + waits)
        training = replace(trained.memory, host=trained.memory.host + waits)
        moved = updates * (world + base + 2 * states) / PCIE if self.machine.gpus else 0.0
        return [
            replace(rolled, memory=rolling, seconds=rolled.seconds + moved),
            replace(trained, memory=training),
        ]

    def _rl_training(self, updates: int) -> TrainConfig:
        """RL's optimiser steps as those of any training."""
        update = self.experiment.rl.update
        return TrainConfig(
            **update.optim.model_dump(),
            steps=max(1, updates * update.epochs * update.minibatches),
            batch_size=math.ceil(self.trajectories * self.long / update.minibatches),
            accumulate=update.accumulate,
        )

    def _refine(self) -> StagePlan:
        config, settings = self.experiment, self.experiment.refine
        world = config.world_model.train.model_copy(update={"steps": settings.world_steps})
        reward = config.reward.train.model_copy(update={"steps": settings.reward_steps})
        decoder = config.decoder.train and config.decoder.train.model_copy(update={"steps": settings.decoder_steps})
        parts: list[Part] = []
        for number in range(1, settings.rounds + 1):
            parts += [self._act(settings.episodes), *self._reward(reward, number), *self._world_model(world, number)]
            parts += [*self._decoder(decoder, number), *self._rl(settings.updates)]
        each = self._frames(settings.episodes) + self._latents(settings.episodes) * self._latent()
        each += self._saved("world_model", world) + self._saved("reward", reward)
        disk = settings.rounds * each + self._reconstructed(settings.rounds) - self._reconstructed()
        return StagePlan("refine", {}, parts or [Part("nothing", Memory(), 0, 0)], disk)

    # Kinds of parts.

    def training(self, name: str, settings: TrainConfig, *, host: float = 0.0, frozen: float = 0.0) -> Part:
        """A training, beside `frozen` bytes of other networks' weights."""
        machine = self.machine
        samples = settings.batch_size / (machine.processes * settings.accumulate)
        if samples < 1:
            expected = f"at least processes x accumulate = {machine.processes * settings.accumulate} samples"
            raise UserError(f"{name}: expected a batch of {expected}, found batch_size={settings.batch_size}")
        if settings.muon_lr:  # needs whole matrices: every process holds all states
            machine = replace(machine, zero=0, offload=False)
        bf16 = machine.bf16(settings.precision)
        step = self.networks.step(name, math.ceil(samples), bf16=bf16, narrow=machine.zero > 0)
        moments = 8 * step.trainable - 4 * step.matrices * bool(settings.muon_lr)
        narrow = bf16 and (machine.zero > 0 or (name in POLICY and self.networks.adapted))
        frozen_bytes = step.frozen * (2 if narrow else 4)
        model = Trained(step.trainable, frozen_bytes, moments, bool(settings.ema_decay), bf16, settings.accumulate)
        memory = training_memory(machine, model, step.footprint)
        # Weights are read in fp32 by every process, and a state passes through the first one's memory when it is saved.
        passing = max(4 * step.trainable * machine.processes, self._state(name, settings)) if machine.gpus else 0
        memory = replace(memory, weights=memory.weights + frozen, host=host + max(memory.host, passing))
        flops = settings.steps * settings.accumulate * machine.processes * step.footprint.flops
        return Part("train", memory, flops, settings.steps * step_seconds(machine, model, step.footprint))

    def _validate(self, train: TrainConfig, training: Memory, times: int, rounds: int) -> Part:
        """While the world model trains. Its gradients are gone, and inference has weights of its own unless those that
        are trained serve as they are (`wovr.core.weights.Weights.judged`)."""
        zero = 0 if train.muon_lr else self.machine.zero
        machine, sharded, whole = self.machine, zero > 0, 4 / self.width * self.dit_weights
        width = 2 if sharded and machine.bf16(train.precision) else 4
        serves = not train.ema_decay and width == self.width and zero < 3
        average = whole if train.ema_decay and not sharded else 0.0  # as a network of its own
        copied = 0.0 if serves or (average and self.width == 4) else self.dit_weights
        copying = whole - copied if copied and not sharded else 0.0  # as it was trained, and then cast
        chunks = times * min(VALIDATION_EPISODES, self._held(rounds)) * self.chunks
        part = self._imagine("validate", chunks, self._replayed())
        memory = replace(
            training,
            weights=training.weights + average + copied,
            gradients=0.0,
            activations=max(part.memory.activations, copying - part.memory.caches),
            caches=part.memory.caches,
            # Gathered and cast in each process.
            host=training.host + (2 * whole * machine.processes if sharded and not serves else 0),
        )
        return replace(part, memory=memory)

    def _imagine(
        self,
        name: str,
        chunks: float,
        batch: int,
        *,
        acts: bool = False,
        more: float = 0.0,
        host: float = 0.0,
        shared: bool = False,
    ) -> Part:
        """So many chunks, `batch` trajectories at once; `more` FLOPs beside them."""
        chunk = self.networks.chunk(batch, bf16=self.bf16)
        codec = self.networks.codec(batch, bf16=self.bf16)
        judge = self.networks.judge(batch * self.chunk_length)
        act = self.networks.act(batch, bf16=self.acts_in_bf16) if acts else Use(0, 0)
        flops = chunk.flops + codec.decode.flops * self.networks.layout.new * batch + judge.flops + act.flops
        # The steps' shared part is gone when frames are decoded.
        activations = max(chunk.bytes, *(use.bytes - chunk.kept for use in (codec.decode, judge, act)))
        memory = Memory(
            self.dit_weights + self.codec_weights + self.judge_weights + acts * self.policy_weights,
            activations=activations,
            caches=chunk.kept + codec.decode.kept,
            host=host,
        )
        return self._use(name, memory, flops * chunks / batch + more, shared=shared)

    def _stretches(self, draws: int, host: float, rounds: int) -> Part:
        """What `wovr.stages.imagined_groups` imagines for a training."""
        wanted = max(STRETCHES, math.ceil(draws / (CHUNKS * self.networks.layout.new)))
        there = self._episodes(rounds) * math.ceil(self.horizon / (CHUNKS * self.chunk_length))
        chunk = self.networks.chunk(STRETCHES, bf16=self.bf16)
        flops = min(wanted, there) * CHUNKS * chunk.flops / STRETCHES
        memory = Memory(self.dit_weights + self.codec_weights, activations=chunk.bytes, caches=chunk.kept, host=host)
        return self._use("imagine ahead", memory, flops)

    def _reconstruct(self, episodes: int, host: float, *, shared: bool = False) -> Part:
        chunks = min(self.chunks, max(1, self.codec.reconstructed // self.networks.layout.new))
        at_once = self.networks.codec(chunks, bf16=self.bf16)
        flops = episodes * (1 + self.horizon // FRAMES_PER_LATENT) * (self.codec.encode.flops + self.codec.decode.flops)
        activations = max(at_once.encode.bytes, at_once.decode.bytes)
        memory = Memory(self.codec_weights, activations=activations, host=host)
        return self._use("reconstruct", memory, flops, "training", shared=shared)

    def _act(self, episodes: int, *, shared: bool = False) -> Part:
        act = self.networks.act(REPLAYED, bf16=self.acts_in_bf16)
        flops = act.flops * episodes * self.chunks / REPLAYED
        return self._use("roll out", Memory(self.policy_weights, activations=act.bytes), flops, shared=shared)

    def _use(
        self,
        name: str,
        memory: Memory,
        flops: float,
        work: Literal["training", "imagination"] = "imagination",
        *,
        shared: bool = False,
    ) -> Part:
        """Every process does all of it, or a share."""
        each = flops / self.machine.processes if shared else flops
        return Part(name, memory, each * self.machine.processes, self.machine.seconds(each, work))
