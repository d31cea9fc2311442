import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wovr.core.seed import normal, seed_everything
from wovr.dit.block import Block, RMSNorm, attend, linear, modulate
from wovr.dit.rope import rotate, rotation


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


def test_block_matches_a_float64_reference_of_wan():
    """Wan's block with modulation per token, written out; the rotation has its own test."""
    B, L, S, T, D, H = 2, 3, 4, 5, 24, 2
    seed_everything(0)
    block = Block(D, H, 48, 1e-6, "tanh", cross_attention=True)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    p = {name: parameter.detach().double() for name, parameter in block.named_parameters()}
    x_BLSD, time_BL6D, tokens_BTD = (
        normal(shape, 0, name) for shape, name in (((B, L, S, D), "x"), ((B, L, 6, D), "time"), ((B, T, D), "tokens"))
    )
    angles = rotation(L, 2, 2, D // H, torch.device("cpu"))

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def heads(x: Tensor, name: str | None = None) -> Tensor:
        if name is not None:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"]
        return x.unflatten(-1, (H, -1))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        probability = torch.softmax(torch.einsum("bnhe,bmhe->bhnm", q, k) / (D // H) ** 0.5, -1)
        return torch.einsum("bhnm,bmhe->bnhe", probability, v).flatten(2)

    e = (p["modulation"] + time_BL6D.double()).repeat_interleave(S, 1).unbind(2)
    x = x_BLSD.double().flatten(1, 2)
    q, k, v = dense(norm(x) * (1 + e[1]) + e[0], "self_attn.qkv").chunk(3, -1)
    q, k = rotate(heads(q, "self_attn.norm_q"), angles), rotate(heads(k, "self_attn.norm_k"), angles)
    x = x + dense(attention(q, k, heads(v)), "self_attn.o") * e[2]
    q = dense(norm(x) * p["norm3.weight"] + p["norm3.bias"], "cross_attn.q")
    k, v = dense(tokens_BTD.double(), "cross_attn.kv").chunk(2, -1)
    y = attention(heads(q, "cross_attn.norm_q"), heads(k, "cross_attn.norm_k"), heads(v))
    x = x + dense(y, "cross_attn.o")
    y = F.gelu(dense(norm(x) * (1 + e[4]) + e[3], "ffn.0"), approximate="tanh")
    expected = x + dense(y, "ffn.2") * e[5]

    with torch.no_grad():
        y_BLSD, _ = block(x_BLSD, time_BL6D, angles, block.action_keys_values(tokens_BTD), L)
    torch.testing.assert_close(y_BLSD.flatten(1, 2).double(), expected, rtol=1e-4, atol=1e-4)
