"""Wan's VAE as a codec, against diffusers' VAE that encodes and decodes everything at once."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.codec.wans import TINY, make_codec, videos
from wovr.codec.base import DecoderState
from wovr.codec.wan import LATENTS_AT_ONCE, WanCodec, WanCodecConfig
from wovr.core.errors import UserError
from wovr.imagine.world_model import for_inference

CLOSE = {"rtol": 0.0, "atol": 1e-5}
MEAN_C111, STD_C111 = (torch.tensor(v)[:, None, None, None] for v in (TINY.latents_mean, TINY.latents_std))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[WanCodec, Any]:
    return make_codec(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def codec(pair: tuple[WanCodec, Any]) -> WanCodec:
    return pair[0]


def theirs(vae: Any, latents_BLChw: Tensor) -> Tensor:
    """Frames (B, T, H, W, 3) in [-1, 1] of everything at once."""
    with torch.no_grad():
        return vae.decode(latents_BLChw.transpose(1, 2) * STD_C111 + MEAN_C111).sample.permute(0, 2, 3, 4, 1)


def pick(state: DecoderState, rows: list[int]) -> DecoderState:
    return tuple(kept[rows] for kept in state)


def test_latents_are_the_normalised_mean_of_diffusers_posterior(pair: tuple[WanCodec, Any]) -> None:
    codec, vae = pair
    frames = videos(2, 1 + 4 * (LATENTS_AT_ONCE + 2))  # more than one pass
    latents = codec.encode(frames)
    with torch.no_grad():
        mode = vae.encode((frames.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)).latent_dist.mode()
    assert latents.shape == (2, 1 + LATENTS_AT_ONCE + 2, 3, 2, 2) and latents.dtype == torch.float32
    assert mode.std() > 0.1
    torch.testing.assert_close(latents, ((mode - MEAN_C111) / STD_C111).transpose(1, 2), **CLOSE)


def test_an_episode_is_one_stream_of_whole_groups(codec: WanCodec) -> None:
    frames = videos(1, 16)[0]
    assert torch.equal(codec.encode_episode(frames), codec.encode(frames[None, :13])[0])


@pytest.mark.parametrize("warm", [1, 2, 4])
def test_chunks_decode_as_everything_at_once(pair: tuple[WanCodec, Any], warm: int) -> None:
    codec, vae = pair
    latents = torch.randn(2, warm + 6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = theirs(vae, latents)
    assert expected.std() > 0.1 and (expected.abs() < 1).float().mean() > 0.5
    state = codec.start(latents[:, :warm])
    for new in range(warm, warm + 6, 2):
        before = [kept.clone() for kept in state]
        pixels, following = codec.draw(latents[:, new : new + 2], state)
        assert all(map(torch.equal, state, before)), "a state can be gone on from twice"
        first = 1 + 4 * (new - 1)
        torch.testing.assert_close(pixels.clamp(-1, 1), expected[:, first : first + 8], **CLOSE)
        state = following


def test_frames_are_bytes_of_the_whole_stream(pair: tuple[WanCodec, Any]) -> None:
    codec, vae = pair
    latents = codec.encode(videos(2, 1 + 4 * (LATENTS_AT_ONCE + 1)))
    frames, expected = codec.decode_all(latents), ((theirs(vae, latents) + 1) * 127.5).round()
    assert frames.shape == (2, 1 + 4 * (LATENTS_AT_ONCE + 1), 32, 32, 3) and frames.dtype == torch.uint8
    assert (frames - expected).abs().max() <= 1, "an error of 1e-5 may lie across a rounding"
    assert (frames == expected).float().mean() > 0.999
    again, _ = codec.decode(latents[:, 2:], codec.start(latents[:, :2]))
    assert (again.int() - frames[:, 5:].int()).abs().max() <= 1


def test_any_rows_may_go_on(codec: WanCodec) -> None:
    """Three streams and a younger one, of which now these and now those advance: each as if alone."""
    latents = torch.randn(4, 8, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    alone = [codec.draw(latents[row : row + 1])[0][0] for row in range(4)]
    older = codec.start(latents[:3, :2])
    states = [*(pick(older, [row]) for row in range(3)), codec.start(latents[3:, :1])]
    seen = [2, 2, 2, 1]
    for rows in ([0, 2], [1], [3, 0], [2, 1, 0, 3], [0, 3]):
        state = tuple(map(torch.cat, zip(*(states[row] for row in rows), strict=True)))
        new = torch.stack([latents[row, seen[row] : seen[row] + 1] for row in rows])
        pixels, state = codec.draw(new, state)
        for i, row in enumerate(rows):
            first = 1 + 4 * (seen[row] - 1)
            torch.testing.assert_close(pixels[i], alone[row][first : first + 4], **CLOSE)
            states[row], seen[row] = pick(state, [i]), seen[row] + 1


def test_bf16_keeps_the_statistics_exact(codec: WanCodec) -> None:
    frames = videos(2, 5)
    rough = for_inference(codec, "bf16")
    latents = rough.encode(frames)
    assert latents.dtype == torch.float32
    assert (latents - codec.encode(frames)).abs().max() < 0.1
    mean_C111, std_C111 = rough._statistics()
    assert torch.equal(mean_C111, MEAN_C111) and torch.equal(std_C111, STD_C111)
    assert all(kept.dtype == torch.bfloat16 for kept in rough.start(latents))


def test_images_that_do_not_fit_are_refused(codec: WanCodec) -> None:
    with pytest.raises(UserError, match="image size: expected multiples of 16 for the codec, found 24 x 24"):
        codec.encode(videos(1, 1, side=24))


def test_the_published_size() -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    config = WanCodecConfig()
    with torch.device("meta"):
        codec = WanCodec(config).bfloat16()
        state = codec.start(torch.empty(1, 2, 48, 16, 16))
    assert (count(codec), count(codec.encoder), count(codec.decoder)) == (704_688_668, 149_627_776, 555_049_228)
    assert sum(kept.nbytes for kept in state) == 233_881_600, "bytes that one stream of 256 x 256 pixels keeps"
    with pytest.raises(ValueError, match="latents_mean: expected 16 numbers, found 48"):
        WanCodecConfig(channels=16)


def test_diffusers_is_imported_only_for_this_codec() -> None:
    code = "import sys, wovr.stages.refine, wovr.stages.rl; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
