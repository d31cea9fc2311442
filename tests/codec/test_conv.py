"""The convolutional codec: grouping, calibration, determinism, what its loss weighs, and that it learns."""

import numpy as np
import pytest
import torch

from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.codec.conv_training import CodecBatches, CodecDataConfig, codec_loss, moving_pixels
from wovr.core.errors import UserError

TINY = ConvCodecConfig(channels=6, frame_width=8, group_width=32, blocks=1)


def moving_squares(episodes: int, frames: int = 13, size: int = 32) -> list[np.ndarray]:
    """A red square that rests and a blue one that moves two pixels a frame, over grey."""
    made = []
    for number in range(episodes):
        rng = np.random.default_rng(number)
        video = np.full((frames, size, size, 3), 120, dtype=np.uint8)
        y, x, row, column = rng.integers(0, size - 8, 4)
        for t in range(frames):
            video[t, y : y + 8, x : x + 8] = (220, 40, 40)
            left = (column + 2 * t) % (size - 8)
            video[t, row : row + 6, left : left + 6] = (40, 60, 220)
        made.append(video)
    return made


@pytest.fixture
def codec() -> ConvCodec:
    torch.manual_seed(0)
    return ConvCodec(TINY).eval()


def batches(batch_size: int = 16, seed: int = 0, **config: float) -> CodecBatches:
    settings = CodecDataConfig.model_validate(config)
    return CodecBatches(moving_squares(6), settings, channels=6, batch_size=batch_size, seed=seed)


def frames_of(batch: int, count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (batch, count, size, size, 3), dtype=torch.uint8)


def test_one_plus_four_k_frames_become_one_plus_k_latents_and_back(codec: ConvCodec) -> None:
    latents = codec.encode(frames_of(2, 9, size=64))
    assert latents.shape == (2, 3, 6, 8, 8) and latents.dtype == torch.float32
    frames, state = codec.decode(latents[:, 1:], codec.start(latents[:, :1]))
    assert state == (), "no group sees another"
    assert frames.shape == (2, 8, 64, 64, 3) and frames.dtype == torch.uint8


def test_first_latent_is_the_still_group_and_groups_do_not_see_each_other(codec: ConvCodec) -> None:
    frames = frames_of(2, 9)
    latents = codec.encode(frames)
    torch.testing.assert_close(latents[:, 0], codec.encode_groups(frames[:, :1].expand(-1, 4, -1, -1, -1)))
    torch.testing.assert_close(latents[:, 2], codec.encode_groups(frames[:, 5:9]))


def test_decoder_keeps_frames_in_order_and_pixels_in_place(codec: ConvCodec) -> None:
    """With every network the identity, what the encoder folds the decoder unfolds to the same picture."""
    frames = frames_of(1, 4)
    width = 3 * 4 * 4
    for name, channels in (
        ("frame_encoder", width),
        ("frame_decoder", width),
        ("group_encoder", 16 * width),
        ("group_decoder", 16 * width),
    ):
        identity = torch.nn.Conv2d(channels, channels, 1, bias=False)
        torch.nn.init.dirac_(identity.weight)
        setattr(codec, name, identity)
    latents = codec._latents(frames)
    assert latents.shape == (1, 16 * width, frames.shape[2] // 8, frames.shape[3] // 8)
    torch.testing.assert_close(codec._pixels(latents) * 127.5 + 127.5, frames.float(), atol=1e-3, rtol=0)


def test_the_patch_basis_is_undone_and_separates_brightness_from_colour(codec: ConvCodec) -> None:
    torch.testing.assert_close(codec.analysis_PP @ codec.synthesis_PP, torch.eye(48), atol=1e-6, rtol=0)
    grey_P = torch.full((48,), 0.5)
    assert torch.count_nonzero((grey_P @ codec.analysis_PP).abs() > 1e-6) == 1, "one coefficient holds a flat grey"
    assert not {"analysis_PP", "synthesis_PP"} & codec.state_dict().keys(), "constants are not weights"


def test_calibration_gives_unit_latents_and_changes_no_picture(codec: ConvCodec) -> None:
    frames = frames_of(16, 4)
    before = codec.encode_groups(frames)
    pictures, _ = codec.decode(before[:, None], ())
    codec.calibrate(before)
    after = codec.encode_groups(frames)
    torch.testing.assert_close(after.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std(dim=(0, 2, 3)), torch.ones(6), atol=1e-4, rtol=0)
    assert (codec.decode(after[:, None], ())[0].int() - pictures.int()).abs().max() <= 1
    codec.calibrate(after)
    torch.testing.assert_close(codec.encode_groups(frames), after, atol=1e-4, rtol=0)


def test_calibration_travels_with_the_weights(codec: ConvCodec) -> None:
    frames = frames_of(8, 4)
    codec.calibrate(codec.encode_groups(frames))
    other = ConvCodec(TINY)
    other.load_state_dict(codec.state_dict())
    assert torch.equal(other.encode_groups(frames), codec.encode_groups(frames))


def test_bfloat16_inference_stays_close_and_is_deterministic(codec: ConvCodec) -> None:
    frames = frames_of(4, 5)
    exact = codec.encode(frames)
    codec.bfloat16()
    rough = codec.encode(frames)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    assert torch.equal(codec.decode_all(rough), codec.decode_all(codec.encode(frames)))


def test_an_image_that_does_not_divide_is_the_users_error(codec: ConvCodec) -> None:
    with pytest.raises(UserError, match="multiples of 8 for the codec, found 30 x 32"):
        codec.encode_groups(torch.zeros(1, 4, 30, 32, 3, dtype=torch.uint8))


def test_moving_pixels_marks_a_thing_and_its_rim_within_the_group_and_against_another_frame() -> None:
    frames = torch.full((1, 4, 16, 16, 3), 100, dtype=torch.uint8)
    other = frames[:, 0].clone()
    frames[0, 2, 4, 4, 1] = 160
    other[0, 10, 10, 0] = 20
    other[0, 15, 0, 0] = 105
    expected = torch.zeros(1, 16, 16)
    expected[0, 3:6, 3:6] = 1
    expected[0, 9:12, 9:12] = 1
    assert torch.equal(moving_pixels(frames, other, threshold=12), expected)


def test_batches_are_a_pure_function_of_the_step() -> None:
    first, again, next_step = batches().at(3), batches().at(3), batches().at(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["frames_BFHWC"], next_step["frames_BFHWC"])
    assert not torch.equal(first["frames_BFHWC"], batches(seed=1).at(3)["frames_BFHWC"])


def test_batches_hold_consecutive_or_still_groups_in_the_stated_share() -> None:
    episodes = moving_squares(6)
    real = {episode[np.maximum(np.arange(end - 3, end + 1), 0)].tobytes() for episode in episodes for end in range(13)}
    still = 0
    for group in batches(256, still_fraction=0.25).at(0)["frames_BFHWC"].numpy():
        repeats = bool((group == group[:1]).all())
        still += repeats
        assert repeats or group.tobytes() in real
    assert 0.15 < still / 256 < 0.4


def test_motion_is_over_sampled() -> None:
    """One episode in ten moves; with half of the draws by motion it is in more than half of the groups."""
    resting = [np.repeat(moving_squares(1)[0][:1], 13, axis=0) for _ in range(9)]
    config = CodecDataConfig(still_fraction=0, moving_fraction=0.5)
    data = CodecBatches([*moving_squares(1), *resting], config, channels=6, batch_size=256, seed=0)
    group = data.at(0)["frames_BFHWC"]
    moving = (group != group[:, :1]).flatten(1).any(dim=1).float().mean()
    assert 0.4 < moving < 0.7


def test_frames_that_never_move_can_be_sampled() -> None:
    still = np.full((5, 32, 32, 3), 9, dtype=np.uint8)
    batch = CodecBatches([still], CodecDataConfig(), channels=6, batch_size=4, seed=0).at(0)
    assert torch.equal(batch["weight_BHW"], torch.ones(4, 32, 32))


def test_loss_of_a_batch_is_the_losses_of_its_parts(codec: ConvCodec) -> None:
    batch = batches(8).at(0)
    whole, logs = codec_loss(codec, batch)
    parts = [{key: value[part] for key, value in batch.items()} for part in (slice(4), slice(4, 8))]
    halves = [codec_loss(codec, part)[0] for part in parts]
    assert whole.shape == (8,) and all(value.shape == (8,) for value in logs.values())
    torch.testing.assert_close(whole, torch.cat(halves))


def test_loss_follows_its_equation() -> None:
    def penalty(x: np.ndarray) -> np.ndarray:
        return x**2 + 0.1 * abs(x)

    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=generator)
    reconstruction = torch.rand(2, 4, 16, 16, 3, generator=generator) * 2 - 1
    weight = 1 + torch.rand(2, 16, 16, generator=generator)
    batch = {"frames_BFHWC": frames, "weight_BHW": weight, "noise_BChw": torch.zeros(2, 6, 2, 2)}
    loss, _ = codec_loss(lambda *_: reconstruction, batch)  # type: ignore[arg-type]
    error, w = reconstruction.double().numpy() - (frames.double().numpy() / 127.5 - 1), weight.double().numpy()
    down, right = error[:, :, 1:] - error[:, :, :-1], error[:, :, :, 1:] - error[:, :, :, :-1]
    for b in range(2):
        pixels = (w[b][None, :, :, None] * penalty(error[b])).mean()
        edges = (w[b][None, 1:, :, None] * penalty(down[b])).mean() + (
            w[b][None, :, 1:, None] * penalty(right[b])
        ).mean()
        assert loss[b].item() == pytest.approx(pixels + 0.5 * edges, rel=1e-5)


def test_noise_is_relative_so_growing_latents_do_not_escape_it(codec: ConvCodec) -> None:
    """Scaling the encoder's output up and the decoder's input down changes nothing, noise included."""
    batch = batches(4).at(0)
    before = codec(batch["frames_BFHWC"], batch["noise_BChw"])
    with torch.no_grad():
        codec.group_encoder[-1].weight.mul_(8)
        codec.group_encoder[-1].bias.mul_(8)
        codec.group_decoder[0].weight.div_(8)
    torch.testing.assert_close(codec(batch["frames_BFHWC"], batch["noise_BChw"]), before, atol=1e-5, rtol=1e-4)


def test_it_learns_what_moves(codec: ConvCodec) -> None:
    data = batches(16)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=2e-3)
    psnr = []
    for step in range(120):
        loss, logs = codec_loss(codec, data.at(step))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        psnr.append(logs["psnr"].mean().item())
    assert np.mean(psnr[-10:]) > 20 > np.mean(psnr[:5])
