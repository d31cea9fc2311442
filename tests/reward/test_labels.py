"""Which frames the classifier is trained on."""

import numpy as np
import pytest
import torch

from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.reward.labels import LabelConfig, LabelledFrames, hard_frames


def episode(number: int, success: list[int], grip: list[int]) -> Episode:
    """An episode whose pixels say where they come from: channel 0 the episode, channel 1 the frame."""
    steps = len(grip)
    frames_THWC = np.zeros((steps + 1, 4, 4, 3), np.uint8)
    frames_THWC[..., 0] = number
    frames_THWC[..., 1] = np.arange(steps + 1)[:, None, None]
    return Episode(
        frames_THWC=frames_THWC,
        actions_TA=np.array([[0, 0, g] for g in grip], np.float32),
        success_T=np.array(success, bool),
        states_TS=np.zeros((steps + 1, 0)),
        instruction=f"task {number}",
        suite="test",
        task_id=0,
        init_id=0,
        policy="test",
        seed=0,
        purpose="test",
    )


SUCCEEDS = episode(0, success=[0] * 15 + [1] * 5, grip=[-1] * 4 + [1] * 10 + [-1] * 6)
FAILS = episode(1, success=[0] * 20, grip=[-1] * 4 + [1] * 4 + [-1] * 12)


def labels_of(data: LabelledFrames, batches: int = 20) -> list[tuple[int, int, int, int]]:
    """(label, episode, frame, reconstructed) of every sample of some batches."""
    rows = []
    for step in range(batches):
        batch = data.batch(step, 50)
        pixels_B3 = batch["frames_BHWC"][:, 0, 0].tolist()
        assert batch["instructions"] == [f"task {pixel[0]}" for pixel in pixels_B3]
        rows += [(int(label), *pixel) for label, pixel in zip(batch["labels_B"], pixels_B3, strict=True)]
    return rows


def test_hard_negatives_of_a_success_and_of_a_failure() -> None:
    # The release is action 14: its result is frame 15, the last before success (frame 16 on).
    assert np.flatnonzero(hard_frames(SUCCEEDS, window=3)).tolist() == [13, 14, 15]
    # The release is action 8, its result frame 9; the episode ends with frame 20.
    assert np.flatnonzero(hard_frames(FAILS, window=3)).tolist() == [9, 10, 11, 18, 19, 20]


def test_frame_labels_are_those_of_the_action_that_made_the_frame() -> None:
    data = LabelledFrames([SUCCEEDS, FAILS], LabelConfig(), seed=0)
    for label, number, frame, _ in labels_of(data):
        assert label == (number == 0 and frame >= 16)


def test_shares_of_positives_and_hard_negatives() -> None:
    data = LabelledFrames([SUCCEEDS, FAILS], LabelConfig(positive=0.4, hard=1.0, window=2), seed=0)
    rows = labels_of(data)
    assert abs(np.mean([label for label, *_ in rows]) - 0.4) < 0.05
    negatives = {(number, frame) for label, number, frame, _ in rows if not label}
    assert negatives == {(0, 14), (0, 15), (1, 9), (1, 10), (1, 19), (1, 20)}
    easy = LabelledFrames([SUCCEEDS, FAILS], LabelConfig(hard=0.0), seed=0)
    assert {frame for label, number, frame, _ in labels_of(easy) if number == 1} == set(range(21))


def test_episodes_are_drawn_as_often_as_their_weights_say() -> None:
    other = episode(2, success=[0] * 20, grip=[-1] * 20)
    data = LabelledFrames([SUCCEEDS, FAILS, other], LabelConfig(), seed=0, weight_E=np.array([1.0, 5.0, 2.0]))
    rows = labels_of(data, batches=80)
    negatives = [number for label, number, *_ in rows if not label]
    share = np.bincount(negatives) / len(negatives)
    np.testing.assert_allclose(share, [1 / 8, 5 / 8, 2 / 8], atol=0.03)
    assert abs(np.mean([label for label, *_ in rows]) - 0.5) < 0.03, "classes stay balanced"
    assert {number for label, number, *_ in rows if label} == {0}


def test_equal_weights_draw_what_none_draw() -> None:
    plain = LabelledFrames([SUCCEEDS, FAILS], LabelConfig(), seed=0)
    equal = LabelledFrames([SUCCEEDS, FAILS], LabelConfig(), seed=0, weight_E=np.ones(2))
    assert labels_of(plain) == labels_of(equal)


def test_reconstructions_replace_their_share_of_the_frames() -> None:
    rebuilt = [episode.frames_THWC.copy() for episode in (SUCCEEDS, FAILS)]
    for frames_THWC in rebuilt:
        frames_THWC[..., 2] = 1
    data = LabelledFrames([SUCCEEDS, FAILS], LabelConfig(reconstructed=0.25), seed=0, reconstructed=rebuilt)
    plain = LabelledFrames([SUCCEEDS, FAILS], LabelConfig(reconstructed=0.25), seed=0)
    assert abs(np.mean([row[-1] for row in labels_of(data)]) - 0.25) < 0.05
    assert [row[:3] for row in labels_of(data)] == [row[:3] for row in labels_of(plain)], "the same draws"


def test_batch_is_a_pure_function_of_seed_and_step() -> None:
    one, other = (LabelledFrames([SUCCEEDS, FAILS], LabelConfig(), seed=0) for _ in range(2))
    one.batch(0, 8)
    assert torch.equal(one.batch(7, 8)["frames_BHWC"], other.batch(7, 8)["frames_BHWC"])
    assert not torch.equal(one.batch(7, 8)["frames_BHWC"], one.batch(8, 8)["frames_BHWC"])


def test_one_class_alone_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="found no positive frame in 2 episodes"):
        LabelledFrames([FAILS, FAILS], LabelConfig(), seed=0)
