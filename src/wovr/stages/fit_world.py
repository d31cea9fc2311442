"""Fit the ActionDiT: on true memories first, then on memories that it imagined itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wovr.core.dist import Dist, Precision
from wovr.core.log import RunLog
from wovr.core.train import TrainConfig, fit
from wovr.dit.model import ActionDiT
from wovr.imagine.load import StoredCodec, load_dit, save_dit
from wovr.imagine.world_model import WorldModel, for_inference
from wovr.stages.experiment import WorldTrainingConfig
from wovr.stages.imagined_groups import imagine_groups
from wovr.stages.latents import LatentEpisodes, OwnMemory, WorldBatches, check_fit, world_loss

Validation = Callable[[nn.Module], dict[str, float]]
"""What `wovr.core.train.fit` calls; `agreement` is its score."""
Calibration = Callable[[ActionDiT], dict[str, float]]
"""Sets the threshold of a network's reward head, and says how it does."""


def part_name(number: int) -> str:
    """File of the network before so many rounds with memories of its own, while they go on."""
    return f"dit.{number}.safetensors"


@dataclass(frozen=True, slots=True)
class WorldTraining:
    """One way to fit networks to one set of episodes: pretraining, training and refinement differ in both."""

    config: WorldTrainingConfig
    codec: StoredCodec
    data: LatentEpisodes
    seed: int
    dist: Dist
    log: RunLog
    precision: Precision | None = None
    """Of the written weights; none keeps the trained ones."""
    weight_E: NDArray[np.float64] | None = None
    """How many times likelier windows of each of the E episodes are drawn; none draws them alike."""
    calibrate: Calibration | None = None
    """Called before a network with a reward head is written."""

    def run(self, dit: ActionDiT, path: Path, validate: Validation | None = None) -> dict[str, float]:
        """Train `dit` in all phases, write it to `path` and return its last validation.

        A phase that was completed before is read from its file, beside `path`.
        """
        settings, own = self.config.train, self.config.own_memory
        if own is None:
            return self.phase(dit, settings, path, validate)
        parts = [path.with_name(part_name(number)) for number in range(own.rounds)]
        done = max((number for number, part in enumerate(parts) if part.is_file()), default=-1)
        if done < 0:
            asked = settings.validate_every or settings.patience
            self.phase(dit, settings, parts[0], validate if asked else None)
        found: dict[str, float] = {}
        for number in range(max(done, 0), own.rounds):
            last = number == own.rounds - 1
            asked = last or own.train.validate_every or own.train.patience
            dit, _, _ = load_dit(parts[number])
            found = self.phase(
                dit,
                own.train,
                path if last else parts[number + 1],
                validate if asked else None,
                own=own.share,
                number=number,
                name="own_memory",
            )
        for part in parts:
            self.dist.on_main(part.unlink)
        return found

    def phase(
        self,
        dit: ActionDiT,
        settings: TrainConfig,
        path: Path,
        validate: Validation | None = None,
        *,
        own: float = 0.0,
        number: int = 0,
        name: str = "world_model",
    ) -> dict[str, float]:
        """Train `dit`, write it to `path` and return its last validation.

        `own` is the share of windows whose memory `dit`, as it comes, imagined itself, in the round of that `number`.
        """
        config = self.config
        check_fit(dit, self.codec.channels, config.loss, config.context)
        window = dit.layout.packed(config.loss.chunks)
        dit.checkpointing = config.checkpointing
        if config.compile:
            for block in dit.blocks:
                block.compile(dynamic=False)
        memory: OwnMemory | None = None
        if own:
            codec = self.codec.codec
            model = WorldModel(codec, for_inference(dit).to(codec.device), config.context, config.flow)
            draws = settings.steps * round(own * settings.batch_size)
            groups = imagine_groups(model, self.data.episodes, draws=draws, seed=self.seed, number=number, log=self.log)
            memory = OwnMemory(*groups, own, number)
        batches = WorldBatches(
            self.data,
            config.windows,
            window,
            batch_size=settings.batch_size,
            copies=config.loss.copies,
            seed=self.seed,
            own=memory,
            weight_E=self.weight_E,
            labels=dit.reward_head is not None,
        )
        result = fit(
            dit,
            world_loss(config.context, config.flow, window, config.loss),
            batches.at,
            settings,
            dist=self.dist,
            folder=path.parent,
            log=self.log,
            name=name,
            validate=validate,
            score="agreement",
        )
        assert isinstance(result.model, ActionDiT)
        network = result.model if self.precision is None else for_inference(result.model, self.precision)
        calibrated = self.calibrate(network) if self.calibrate and network.reward_head is not None else {}
        self.dist.on_main(lambda: save_dit(path, network, config.context, config.flow))
        result.clean()
        return result.validation | calibrated
