import torch
import torch.nn.functional as F  # noqa: N812

from wovr.core.seed import normal
from wovr.dit.block import RMSNorm, attend, linear, modulate


def test_rms_norm_and_its_gradients_match_float64():
    norm = RMSNorm(12, 1e-2, scale=0.5)
    norm.weight.data = normal((12,), 0, "weight")
    x = normal((2, 5, 12), 0, "x").requires_grad_()
    upstream = normal((2, 5, 12), 0, "upstream")
    (norm(x) * upstream).sum().backward()

    x64, weight64 = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    expected = 0.5 * weight64 * x64 / (x64.square().mean(-1, keepdim=True) + 1e-2).sqrt()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.weight.grad.double(), weight64.grad, rtol=1e-4, atol=1e-5)


def test_rms_norm_stays_float32_under_autocast():
    norm = RMSNorm(192, 1e-6)
    x = normal((4, 192), 0, "x").bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    torch.testing.assert_close(y, norm(x.float()), rtol=1e-6, atol=1e-6)


def test_attention_by_steps_equals_the_fused_kernel():
    q, k, v = normal((2, 3, 5, 4), 0, "q"), normal((2, 3, 7, 4), 0, "k"), normal((2, 3, 7, 4), 0, "v")
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v, scale=1.0))


def test_modulation_is_shift_and_scale():
    x, shift, scale = (normal((2, 3, 4, 8), 0, name) for name in ("x", "shift", "scale"))
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)


def test_fused_linear_is_drawn_like_its_parts():
    torch.manual_seed(0)
    bound = (6 / (64 + 64)) ** 0.5  # Xavier of a 64 x 64 matrix
    weight = linear(64, 192, parts=3).weight
    assert 0.98 * bound < weight.abs().max() <= bound
