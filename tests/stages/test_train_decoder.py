from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.stages.test_hallucination import make_episode
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.codec.conv_training import CodecDataConfig
from wovr.core.log import RunLog
from wovr.dit.context import ContextConfig, layout
from wovr.stages import imagined_groups
from wovr.stages.imagined_groups import imagine_groups
from wovr.stages.train_decoder import DecoderBatches


@dataclass
class State:
    rows: torch.Tensor

    def select(self, rows):
        return State(self.rows[rows])


class Echo:
    """A world model whose latents are the action that led to the last frame of each group."""

    chunk_length, context, device = 8, ContextConfig(), torch.device("cpu")
    codec = SimpleNamespace(stride=1)
    layout = layout(ContextConfig(), 8)

    def start(self, starts, *, frames):
        assert not frames, "nobody looks"
        return State(torch.arange(len(starts)))

    def noise_shape(self, state):
        return (2, 3, 8, 8)

    def imagine(self, state, actions_BHA, noise_BLChw):
        return actions_BHA[:, [3, 7], :, None, None].expand(-1, -1, -1, 8, 8)

    def advance(self, state, actions_BHA, new_BLChw):
        return state


def test_imagined_groups_stand_beside_the_frames_that_truly_followed(tmp_path: Path) -> None:
    episodes = []
    for number, steps in enumerate((5, 8, 23, 48)):
        episode = make_episode(number, steps)
        actions_TA = np.zeros_like(episode.actions_TA)
        actions_TA[:, 0], actions_TA[:, 1] = number, np.arange(steps)
        frames_THWC = (
            np.zeros((steps + 1, 64, 64, 3), np.uint8) + np.arange(steps + 1, dtype=np.uint8)[:, None, None, None]
        )
        episodes.append(replace(episode, actions_TA=actions_TA, frames_THWC=frames_THWC))
    codec = ConvCodec(ConvCodecConfig(channels=3, frame_width=8, group_width=16, blocks=1))
    log = RunLog(tmp_path, plain=True)

    def batches(true_fraction: float) -> DecoderBatches:
        return DecoderBatches(
            Echo(),
            codec,
            episodes,
            CodecDataConfig(),
            true_fraction=true_fraction,
            batch_size=64,
            steps=1,
            seed=0,
            log=log,
        )

    imagined = batches(0.0)
    assert {episode for episode, _ in imagined.group_N} == {2, 3} | ({1} if (1, 8) in imagined.group_N else set())
    batch = imagined.at(0)
    last_B = batch["latents_BChw"][:, 1, 0, 0]
    assert len(set(last_B.tolist())) > 4
    for frame in range(4):
        assert torch.equal(batch["frames_BFHWC"][:, frame, 0, 0, 0], (last_B - 2 + frame).clamp(min=0).byte())

    mixed = batches(0.25).at(0)
    true_BChw = codec.encode_groups(mixed["frames_BFHWC"][:16])
    assert (mixed["latents_BChw"][:16] - true_BChw).std() < 0.2, "the codec's own latents, slightly noised"
    assert torch.equal(mixed["latents_BChw"][16:], batch["latents_BChw"][16:])


def test_no_more_is_imagined_than_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagined_groups, "BATCH", 2)
    episodes = [make_episode(number, 48) for number in range(10)]
    log = RunLog(tmp_path, plain=True)
    _, everything = imagine_groups(Echo(), episodes, draws=1000, seed=0, log=log)
    latents_NChw, some = imagine_groups(Echo(), episodes, draws=9, seed=0, log=log)
    assert len(latents_NChw) == len(some) <= 12 < len(everything), "three stretches of four groups"
    assert set(some) < set(everything)
    assert len({episode for episode, _ in some}) > 1, "not the first ones"


def test_stretches_begin_where_the_codec_has_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "codec", SimpleNamespace(stride=4))
    episodes = [make_episode(number, 48) for number in range(10)]
    _, places = imagine_groups(Echo(), episodes, draws=1000, seed=0, log=RunLog(tmp_path, plain=True))
    assert {end % 8 for _, end in places} == {0, 4}
