import pytest
import torch

from wovr.core.seed import normal
from wovr.flow import path
from wovr.flow.loss import velocity_loss
from wovr.flow.schedule import FlowConfig, shift, solver_sigmas, train_sigmas, train_weights
from wovr.flow.solver import euler

B, L, C, h, w = 3, 2, 4, 2, 2


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return normal((B, L, C, h, w), 0, "data").double(), normal((B, L, C, h, w), 0, "noise").double()


def test_path_ends_at_data_and_noise():
    data, noise = pair()
    torch.testing.assert_close(path.interpolate(data, noise, torch.zeros(B)), data)
    torch.testing.assert_close(path.interpolate(data, noise, torch.ones(B)), noise)


def test_velocity_leads_back_to_data_from_anywhere():
    data, noise = pair()
    sigma_BL = torch.tensor([[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]])
    x_sigma = path.interpolate(data, noise, sigma_BL)
    torch.testing.assert_close(x_sigma - sigma_BL[..., None, None, None] * path.velocity(data, noise), data)


def test_wan_five_steps_at_shift_five():
    expected = [1, 0.952, 0.882, 0.769, 0.556, 0]
    assert solver_sigmas(FlowConfig()) == pytest.approx(expected, abs=5e-4)


def test_shift_of_one_is_even_and_shift_keeps_the_ends():
    assert solver_sigmas(FlowConfig(steps=4, shift=1)) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert shift(0.0, 7.0) == 0 and shift(1.0, 7.0) == 1


def test_uniform_training_sigmas_are_shifted_and_never_zero():
    u = (torch.arange(1000) + 0.5) / 1000
    sigma = train_sigmas(FlowConfig(), u)
    assert sigma.min() > 0 and sigma.max() <= 1
    assert sigma.median().item() == pytest.approx(shift(0.5, 5.0), abs=1e-3)


def test_grid_training_draws_exactly_what_the_solver_visits():
    config = FlowConfig(train_sigmas="grid")
    sigma = train_sigmas(config, (torch.arange(1000) + 0.5) / 1000)
    assert sorted(set(sigma.tolist()), reverse=True) == pytest.approx(solver_sigmas(config)[:-1])
    assert sigma.unique(return_counts=True)[1].tolist() == [200] * 5


@pytest.mark.parametrize("mode", ["uniform", "grid"])
def test_bell_weights_have_mean_one_and_vanish_at_pure_noise(mode):
    config = FlowConfig(train_sigmas=mode, train_weight="bell")
    weight = train_weights(config, train_sigmas(config, (torch.arange(5000) + 0.5) / 5000))
    assert weight.mean().item() == pytest.approx(1, abs=1e-3)
    assert train_weights(config, torch.ones(1)).item() == pytest.approx(0, abs=1e-6)
    assert train_weights(FlowConfig(), torch.ones(1)).item() == 1


@pytest.mark.parametrize("steps", [1, 5])
def test_euler_is_exact_on_a_straight_path(steps):
    data, noise = pair()
    sigmas = solver_sigmas(FlowConfig(steps=steps))
    solved = euler(lambda x, sigma: path.velocity(data, noise), noise, sigmas)
    torch.testing.assert_close(solved, data)


def test_euler_converges_on_a_curved_path():
    solved = euler(
        lambda x, sigma: x, torch.ones(1, dtype=torch.float64), solver_sigmas(FlowConfig(steps=4000, shift=1))
    )
    assert solved.item() == pytest.approx(torch.tensor(-1.0).exp().item(), abs=1e-4)


def test_loss_is_per_sample_and_weights_do_not_cancel():
    prediction, target = pair()
    loss_B = velocity_loss(prediction, target)
    torch.testing.assert_close(loss_B.double(), ((prediction - target) ** 2).mean((1, 2, 3, 4)))
    weights = torch.rand(B, L, h, w, dtype=torch.float64)
    expected_B = (weights.unsqueeze(2) * (prediction - target) ** 2).mean((1, 2, 3, 4))
    torch.testing.assert_close(velocity_loss(prediction, target, weights).double(), expected_B, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(velocity_loss(prediction, target, 2 * torch.ones(B, L, h, w)), 2 * loss_B)
