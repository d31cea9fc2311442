import pytest
import torch
from pydantic import ValidationError

from wovr.core.seed import normal
from wovr.dit.context import ContextConfig, Layout, layout, memory_sigmas, noised_window, timesteps


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ContextConfig(), Layout((1, 4, 4, 4), 2)),
        (ContextConfig(memory_frames=1), Layout((1, 1, 4, 4), 2)),
        (ContextConfig(memory_frames=8), Layout((1, 4, 4, 4, 4), 2)),
        (ContextConfig(reference=False), Layout((4, 4, 4), 2)),
    ],
)
def test_layouts(config, expected):
    assert layout(config, 8) == expected


def test_published_window_has_13_actions_and_two_context_latents():
    assert (layout(ContextConfig(), 8).actions, layout(ContextConfig(), 8).context) == (13, 2)


def test_memory_that_fills_no_whole_latent_is_refused():
    with pytest.raises(ValidationError, match="multiple of 4"):
        ContextConfig(memory_frames=3)


def test_memory_sigmas_by_kind():
    u = torch.tensor([0.0, 0.25, 0.75])
    assert memory_sigmas(ContextConfig(noise="none"), u).tolist() == [0, 0, 0]
    assert memory_sigmas(ContextConfig(noise="fixed", noise_sigma=0.5), u).tolist() == [0.5, 0.5, 0.5]
    assert memory_sigmas(ContextConfig(noise="uniform", noise_sigma=0.5), u).tolist() == [0, 0.125, 0.375]


@pytest.mark.parametrize("reference", [True, False])
def test_noised_window(reference):
    config = ContextConfig(reference=reference)
    window = layout(config, 8)
    shape = (2, window.frames, 3, 2, 2)
    data, noise = normal(shape, 0, "data"), normal(shape, 0, "noise")
    sigma, memory_sigma = torch.tensor([1.0, 0.5]), torch.tensor([0.2, 0.1])
    latents, steps, target = noised_window(config, window, data, noise, sigma, memory_sigma)

    if reference:
        assert torch.equal(latents[:, 0], data[:, 0])
    memory = window.context - 1
    torch.testing.assert_close(latents[0, memory], 0.8 * data[0, memory] + 0.2 * noise[0, memory])
    torch.testing.assert_close(latents[1, memory], 0.9 * data[1, memory] + 0.1 * noise[1, memory])
    torch.testing.assert_close(latents[0, -2:], noise[0, -2:])
    torch.testing.assert_close(latents[1, -2:], 0.5 * data[1, -2:] + 0.5 * noise[1, -2:])
    torch.testing.assert_close(target, (noise - data)[:, -2:])
    assert torch.equal(steps, timesteps(window, sigma))
    assert steps.tolist() == [[0.0] * window.context + [1000.0] * 2, [0.0] * window.context + [500.0] * 2]
