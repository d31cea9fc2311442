"""Train the codec's decoder on what the world model imagines.

Imagined latents lie beside those of true frames: a carried block, whose code changes with every fraction of a pixel,
comes out as a smear, and the reward misses it. A decoder that is shown imagined latents beside the frames that truly
followed learns to draw the block where the gripper is. The encoder, and so every latent, stays as it is.

Departure: the paper keeps Wan's VAE frozen.

Legend: N groups, B batch, F frames of a group (4), C latent channels, h w latent height and width; images are
height x width x 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wovr.codec.conv import GROUP, ConvCodec
from wovr.codec.conv_training import CodecDataConfig, pixel_loss, weighted_groups
from wovr.core.checkpoint import link_file
from wovr.core.log import RunLog
from wovr.core.seed import normal, stream
from wovr.core.train import TrainConfig, fit
from wovr.core.types import Episode
from wovr.episodes.windows import memory_indices
from wovr.imagine.load import CODEC, DIT, REWARD, WORLD_CODEC, load_codec, load_dit, load_reward, save_codec
from wovr.imagine.world_model import WorldModel, for_inference
from wovr.stages.experiment import Workplace
from wovr.stages.imagined_groups import imagine_groups
from wovr.stages.train_wm import validation, validation_episodes


def run(place: Workplace) -> dict[str, Any]:
    """Write `world_model/codec.safetensors`; the summary holds the open-loop validation with it."""
    train, held = place.training_data()
    path = place.run.path
    return train_decoder(place, path / CODEC, path, train, held, place.experiment.decoder.train)


def train_decoder(
    place: Workplace,
    source: Path,
    folder: Path,
    train: list[Episode],
    held: list[tuple[str, Episode]],
    settings: TrainConfig | None,
) -> dict[str, Any]:
    """Train the decoder of the codec in `source` for the world model below `folder`, and write it there; refinement
    calls this too.

    `settings = None` leaves the codec as it is.
    """
    config, device = place.experiment, place.dist.device
    dit, context, flow = load_dit(folder / DIT)
    network = for_inference(dit).to(device)
    codec = load_codec(source)
    if settings is not None:
        assert isinstance(codec, ConvCodec), "Wan's codec is not trained here"
        frozen = for_inference(codec).to(device)
        batches = DecoderBatches(
            WorldModel(frozen, network, context, flow),
            frozen,
            train,
            config.codec.data,
            true_fraction=config.decoder.true_fraction,
            batch_size=settings.batch_size,
            steps=settings.steps,
            seed=config.seed,
            log=place.log,
        )
        codec.freeze_encoder()
        result = fit(
            codec,
            decoder_loss,
            batches.at,
            settings,
            dist=place.dist,
            folder=(folder / WORLD_CODEC).parent,
            log=place.log,
            name="decoder",
        )
        assert isinstance(result.model, ConvCodec)
        codec = result.model
    reward = load_reward(folder / REWARD, device)
    found = validation(place, network, for_inference(codec).to(device), reward, validation_episodes(place, held))
    if settings is None:
        place.dist.on_main(lambda: link_file(folder / WORLD_CODEC, source))
    else:
        place.dist.on_main(lambda: save_codec(folder / WORLD_CODEC, codec))
        result.clean()
    return found


def decoder_loss(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """`pixel_loss` of what the decoder makes of `DecoderBatches`."""
    assert isinstance(model, ConvCodec)
    return pixel_loss(model.draw(batch["latents_BChw"]), batch["frames_BFHWC"], batch["weight_BHW"])


class DecoderBatches:
    """Groups as the world model imagines them, and what truly followed; `at(step)` is a pure function of the step."""

    def __init__(
        self,
        model: WorldModel,
        codec: ConvCodec,
        episodes: Sequence[Episode],
        data: CodecDataConfig,
        *,
        true_fraction: float,
        batch_size: int,
        steps: int,
        seed: int,
        log: RunLog,
    ) -> None:
        """`true_fraction` of the samples keep the latents of the true frames, with noise as in the codec's training.

        As many groups are imagined as `steps` can draw. Raises UserError where no episode holds a chunk.
        """
        self.model, self.codec, self.episodes, self.data = model, codec, episodes, data
        self.true_fraction, self.batch_size, self.seed = true_fraction, batch_size, seed
        self.latents_NChw, self.group_N = imagine_groups(model, episodes, draws=steps * batch_size, seed=seed, log=log)

    def at(self, step: int) -> dict[str, Tensor]:
        """`frames_BFHWC` uint8, `weight_BHW` and `latents_BChw` float32."""
        random = stream(self.seed, "decoder-groups", step)
        chosen_B = random.integers(0, len(self.group_N), self.batch_size)
        others_B = random.random(self.batch_size)
        owners, ends = zip(*(self.group_N[chosen] for chosen in chosen_B), strict=True)
        videos = [self.episodes[episode].frames_THWC for episode in owners]
        groups = weighted_groups(videos, memory_indices(ends, GROUP), others_B, self.data)
        latents_BChw = self.latents_NChw[torch.from_numpy(chosen_B)]
        true = round(self.true_fraction * self.batch_size)
        if true:
            true_BChw = self.codec.encode_groups(groups["frames_BFHWC"][:true].to(self.model.device)).cpu()
            noise_BChw = normal(tuple(true_BChw.shape), self.seed, "decoder-true-noise", step)
            latents_BChw[:true] = true_BChw + self.data.latent_noise * noise_BChw
        return groups | {"latents_BChw": latents_BChw}
