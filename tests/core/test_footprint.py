"""Legend: B samples, D width, T tokens, E channels of a head."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.footprint import Footprint, Shapes

B, D = 64, 32


def chain(layers: int) -> nn.Sequential:
    with torch.device("meta"):
        return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(D, D, bias=False), nn.ReLU())))


def trained(model: nn.Module, *, gpu: bool, autocast: bool = False, dtype: torch.dtype | None = None) -> Footprint:
    with Shapes(gpu) as shapes:
        shapes.place(model, dtype)
        kind = dtype or torch.float32
        return shapes.training(model, lambda model: model(torch.zeros(B, D, dtype=kind)).sum(), autocast=autocast)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_chain_is_counted_as_by_hand(gpu: bool) -> None:
    map_bytes, weight_bytes = 4 * B * D, 4 * D * D
    found = trained(chain(4), gpu=gpu)
    assert found.flops == (4 + 4 + 3) * 2 * B * D * D, "forward, both gradients, none for the input"
    assert [finished for finished, _ in found.levels] == [n * weight_bytes for n in range(5)]
    # The input, each layer's relu, the sum; then one map's gradient at a time, and the weight's that is being made.
    assert found.peak(0) == pytest.approx((1 + 4) * map_bytes + 2 * map_bytes, rel=0.2)
    assert trained(chain(8), gpu=gpu).peak(0) - found.peak(0) == 4 * map_bytes, "a layer keeps one map"
    assert found.peak(1) >= 4 * weight_bytes and found.peak(0) <= found.peak(0.5) <= found.peak(1)


def test_bf16_weights_halve_and_autocast_keeps_copies() -> None:
    wide, narrow = trained(chain(8), gpu=True), trained(chain(8), gpu=True, dtype=torch.bfloat16)
    assert narrow.peak(0) == wide.peak(0) / 2 and narrow.levels[-1][0] == wide.levels[-1][0] / 2
    under_autocast = trained(chain(8), gpu=True, autocast=True)
    assert under_autocast.levels[-1][0] == wide.levels[-1][0], "gradients of fp32 weights"
    assert under_autocast.peak(0) > narrow.peak(0) + 7 * 2 * D * D, "and a bf16 copy of each"


def test_autocast_on_a_gpu_is_that_of_a_cpu() -> None:
    found = {}
    for gpu in (False, True):
        with torch.device("meta"):
            codec = ConvCodec(ConvCodecConfig(channels=4, frame_width=8, group_width=16))
        with Shapes(gpu) as shapes:
            shapes.place(codec)

            def loss(model: nn.Module) -> Tensor:
                return model(torch.zeros(4, 4, 64, 64, 3, dtype=torch.uint8), torch.zeros(4, 4, 8, 8)).square().sum()

            found[gpu] = shapes.training(codec, loss, autocast=True)
    assert found[True].flops == found[False].flops
    assert found[True].peak() == pytest.approx(found[False].peak(), rel=0.02)


def test_attention_on_a_gpu_keeps_no_map_of_tokens_by_tokens() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(64, 192)

        def forward(self, x_BTD: Tensor) -> Tensor:
            q, k, v = self.qkv(x_BTD).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v)

    def attend(tokens: int, model: nn.Module) -> Tensor:
        return model(torch.zeros(1, tokens, 64, dtype=torch.bfloat16)).sum()

    peaks = []
    for tokens in (256, 512):
        with torch.device("meta"):
            model = Attention()
        with Shapes(gpu=True) as shapes:
            shapes.place(model, torch.bfloat16)
            found = shapes.training(model, partial(attend, tokens), autocast=False)
        peaks.append(found.peak(0))
        assert found.flops > (2 + 5) * 2 * tokens * tokens * 64, "its products count: two forward, five backward"
    assert peaks[1] < 2.1 * peaks[0]


@pytest.mark.parametrize("gpu", [False, True])
def test_checkpointing_is_seen(gpu: bool) -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(chain(3) for _ in range(6))

        def forward(self, x_BD: Tensor) -> Tensor:
            for block in self.blocks:
                x_BD = checkpoint(block, x_BD, use_reentrant=False)
            return x_BD

    found, whole = trained(Blocks(), gpu=gpu), trained(chain(18), gpu=gpu)
    assert found.peak(0) < 0.6 * whole.peak(0)
    assert found.flops == whole.flops + 18 * 2 * B * D * D, "the forward pass once more"


def test_inference_counts_the_largest_moment_alone() -> None:
    model = chain(8)
    with Shapes(gpu=True) as shapes:
        shapes.place(model)
        x_BD = torch.zeros(B, D)
        found = shapes.inference(lambda: model(x_BD), [model])
    assert found.peak() == 2 * 4 * B * D and found.flops == 8 * 2 * B * D * D


def test_distinct_rows_are_taken_to_be_all() -> None:
    with Shapes(gpu=True):
        rows, place = torch.unique(torch.zeros(5, 3, dtype=torch.int64), dim=0, return_inverse=True)
    assert rows.shape == (5, 3) and place.shape == (5,)
