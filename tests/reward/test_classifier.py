"""The reward classifier: interface, loss, and that it learns the relation that the text names."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.utils.flop_counter

from wovr.core.checkpoint import load_model, save_model
from wovr.core.seed import stream
from wovr.reward.classifier import RewardClassifier, RewardClassifierConfig, reward_loss

TINY = RewardClassifierConfig(channels=16, hidden_width=64)
COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}


def block_on_disc(count: int, seed: int) -> dict[str, object]:
    """A grey disc, a red and a blue block of which one may lie on it; success is that the named one does."""
    rng = stream(seed, "discs")
    y_h, x_w = np.mgrid[:32, :32] + 0.5
    frames_BHWC = np.full((count, 32, 32, 3), 220, np.uint8)
    instructions, labels_B = [], np.zeros(count, np.float32)
    for row in range(count):
        x, y = rng.integers((8, 8), (24, 12))
        frames_BHWC[row][np.hypot(x_w - x, y_h - y) < 7] = 90
        corners = {"on": (x, y), "away": (rng.integers(4, 28), 26)}
        lies_on, named = rng.permutation(list(COLOURS))[0], list(COLOURS)[rng.integers(2)]
        for name, colour in COLOURS.items():
            left, top = corners["on" if name == lies_on else "away"]
            frames_BHWC[row, top - 2 : top + 2, left - 2 : left + 2] = colour
        instructions.append(f"put the {named} block on the disc")
        labels_B[row] = named == lies_on
    return {
        "frames_BHWC": torch.from_numpy(frames_BHWC),
        "instructions": instructions,
        "labels_B": torch.from_numpy(labels_B),
    }


@pytest.fixture
def classifier() -> RewardClassifier:
    torch.manual_seed(0)
    return RewardClassifier(TINY)


def test_loss_is_cross_entropy_per_sample(classifier: RewardClassifier) -> None:
    batch = block_on_disc(6, seed=1)
    loss_B, logs = reward_loss(classifier, batch)
    probability_B = classifier.probability(batch["frames_BHWC"], batch["instructions"]).double()
    labels_B = batch["labels_B"].double()
    expected_B = -(labels_B * probability_B.log() + (1 - labels_B) * (1 - probability_B).log())
    torch.testing.assert_close(loss_B.double(), expected_B, rtol=1e-5, atol=1e-6)
    wrong_B = logs["false_success"] + logs["missed_success"]
    assert torch.equal(logs["accuracy"] + wrong_B, torch.ones(6))


def test_probability_has_no_gradient_and_does_not_depend_on_the_batch(classifier: RewardClassifier) -> None:
    batch = block_on_disc(6, seed=1)
    probability_B = classifier.probability(batch["frames_BHWC"], batch["instructions"])
    assert probability_B.shape == (6,) and probability_B.dtype == torch.float32 and not probability_B.requires_grad
    alone_B = classifier.probability(batch["frames_BHWC"][4:5], batch["instructions"][4:5])
    torch.testing.assert_close(alone_B[0], probability_B[4])


def test_decision_rule_travels_with_the_weights(classifier: RewardClassifier, tmp_path: Path) -> None:
    assert (classifier.threshold, classifier.hold) == (0.5, 1), "Eq. 8"
    classifier.calibrated(0.8, hold=2)
    save_model(tmp_path / "classifier.safetensors", classifier, classifier.config)
    loaded = load_model(tmp_path / "classifier.safetensors", RewardClassifierConfig, RewardClassifier)
    assert (loaded.threshold, loaded.hold) == (0.8, 2)
    batch = block_on_disc(3, seed=1)
    arguments = batch["frames_BHWC"], batch["instructions"]
    assert torch.equal(loaded.probability(*arguments), classifier.probability(*arguments))


def test_default_size_stays_cheap() -> None:
    classifier = RewardClassifier(RewardClassifierConfig())
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter:
        classifier.probability(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), ["go"])
    assert counter.get_total_flops() < 15e6


def test_it_learns_which_block_the_text_names(classifier: RewardClassifier) -> None:
    data = block_on_disc(512, seed=2)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for step in range(120):
        rows = torch.from_numpy(stream(0, "rows", step).integers(512, size=64))
        loss_B, _ = reward_loss(
            classifier,
            {
                "frames_BHWC": data["frames_BHWC"][rows],
                "instructions": [data["instructions"][row] for row in rows],
                "labels_B": data["labels_B"][rows],
            },
        )
        optimizer.zero_grad()
        loss_B.mean().backward()
        optimizer.step()
    _, logs = reward_loss(classifier, block_on_disc(200, seed=3))
    assert logs["accuracy"].mean() > 0.95, "0.5 without the text"
