"""Rotary attention against a float64 reference written with complex numbers, as Wan states it."""

import torch
from torch import Tensor

from wovr.core.seed import normal, seed_everything
from wovr.dit.block import SelfAttention
from wovr.dit.rope import from_wan, rotate, rotation

FRAMES, HEIGHT, WIDTH, HEADS, E = 3, 2, 2, 2, 16
N, D = FRAMES * HEIGHT * WIDTH, HEADS * E


def reference_rotate(x_BNHE: Tensor) -> Tensor:
    """Wan: of E / 2 complex pairs, E/2 - 2 (E/2 // 3) turn with the frame and E/2 // 3 each with height and width."""
    spatial = E // 2 // 3
    turned = torch.view_as_complex(x_BNHE.double().unflatten(-1, (-1, 2)).contiguous())
    for n in range(N):
        place = (n // (HEIGHT * WIDTH), n // WIDTH % HEIGHT, n % WIDTH)
        angles = []
        for position, pairs in zip(place, (E // 2 - 2 * spatial, spatial, spatial), strict=True):
            angles += [position / 10000 ** (2 * i / (2 * pairs)) for i in range(pairs)]
        turned[:, n] *= torch.polar(torch.ones(E // 2).double(), torch.tensor(angles).double())
    return torch.view_as_real(turned).flatten(-2)


def test_rotation_matches_complex_multiplication():
    x_BNHE = normal((2, N, HEADS, E), 0, "x")
    order = from_wan(E)
    rotated = rotate(x_BNHE[..., order], rotation(FRAMES, HEIGHT, WIDTH, E, x_BNHE.device))
    torch.testing.assert_close(rotated.double(), reference_rotate(x_BNHE)[..., order], rtol=0, atol=1e-6)


def test_wan_splits_128_channels_into_44_42_42():
    cos_N1P, _ = rotation(5, 1, 1, 128, torch.device("cpu"))
    turning = (cos_N1P[1:, 0] != 1).any(0)
    assert turning.nonzero().flatten().tolist() == [*range(22), *range(64, 64 + 22)]


def test_self_attention_matches_a_float64_reference():
    seed_everything(0)
    attention = SelfAttention(D, HEADS, 1e-6)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_BND = normal((2, N, D), 0, "x")
    weights = {name: parameter.detach().double() for name, parameter in attention.named_parameters()}

    def rms(t: Tensor, name: str) -> Tensor:
        return t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"norm_{name}.weight"]

    q, k, v = (x_BND.double() @ weights["qkv.weight"].T + weights["qkv.bias"]).split(D, -1)
    to_wan = from_wan(E).argsort()
    q, k = (reference_rotate(rms(t, name).unflatten(-1, (HEADS, E))[..., to_wan]) for t, name in ((q, "q"), (k, "k")))
    probability = torch.softmax(torch.einsum("bnhe,bmhe->bhnm", q, k) / E**0.5, -1)
    expected = torch.einsum("bhnm,bmhe->bnhe", probability, v.unflatten(-1, (HEADS, E))).flatten(2)
    expected = expected @ weights["o.weight"].T + weights["o.bias"]

    with torch.no_grad():
        y_BND, _ = attention(x_BND, rotation(FRAMES, HEIGHT, WIDTH, E, x_BND.device), queries=N)
    torch.testing.assert_close(y_BND.double(), expected, rtol=1e-4, atol=1e-4)
