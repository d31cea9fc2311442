"""Packed training: several chunks of a clip in one forward, under a block-causal mask."""

import pytest
import torch
from torch import Tensor

from tests.dit.test_model import SIDE, A, B, C, build
from wovr.core.seed import normal
from wovr.dit.context import ContextConfig, Layout, layout
from wovr.dit.model import ActionDiT

K = 3
CONTEXTS = [
    ContextConfig(),
    ContextConfig(memory_frames=1),
    ContextConfig(memory_frames=8),
    ContextConfig(reference=False),
]


def clip(model: ActionDiT, chunks: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and actions of a clip, every chunk at its own sigma."""
    packed = model.layout.packed(chunks)
    timesteps_BL = torch.zeros(B, packed.frames)
    timesteps_BL[:, packed.context :] = 1000 * torch.rand(B, chunks).repeat_interleave(model.layout.new, 1)
    latents_BLChw = normal((B, packed.frames, C, SIDE, SIDE), 0, "latents")
    return latents_BLChw, timesteps_BL, normal((B, packed.actions, A), 0, "actions")


def chunk(model: ActionDiT, j: int) -> slice:
    """The new latents of chunk j."""
    return slice(j * model.layout.new, (j + 1) * model.layout.new)


def moved(before: Tensor, after: Tensor) -> list[bool]:
    """Of each chunk's velocities."""
    return [bool((a != b).any()) for a, b in zip(before.chunk(K, 1), after.chunk(K, 1), strict=True)]


def test_nearly_every_latent_of_a_packed_window_is_supervised():
    packed = layout(ContextConfig(), 8).packed(8)
    assert (packed.new, packed.frames, packed.context, packed.actions) == (16, 18, 2, 5 + 8 * 8)
    assert layout(ContextConfig(), 8).packed(1) == Layout((1, 4, 4, 4), 2)


@pytest.mark.parametrize("first", [0, 2])
def test_runs_are_the_block_causal_mask(first: int):
    packed = layout(ContextConfig(), 8).packed(K)  # 0 0 | 0 0 | 1 1 | 2 2
    block_L = [0, 0, 0, 0, 1, 1, 2, 2]
    block_T = [0] * 13 + [1] * 8 + [2] * 8
    rows = [run for run in packed.runs(first, packed.frames) for _ in range(run.frames)]
    assert [run.latents for run in rows] == [sum(other <= own for other in block_L) for own in block_L[first:]]
    assert [run.actions for run in rows] == [sum(other <= own for other in block_T) for own in block_L[first:]]
    assert packed.runs(0, packed.context) == ((2, 2, 13),), "the context alone, with the first chunk's actions"


@pytest.mark.parametrize("causal_context", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
@torch.no_grad()
def test_the_first_chunk_is_the_window_of_inference(context: ContextConfig, causal_context: bool):
    model = build(context, causal_context=causal_context)
    latents, timesteps, actions = clip(model)
    L, T = model.layout.frames, model.layout.actions
    alone = model(latents[:, :L], timesteps[:, :L], actions[:, :T], new_only=True)
    packed = model(latents, timesteps, actions, new_only=True)
    assert packed.shape == (B, K * model.layout.new, C, SIDE, SIDE)
    torch.testing.assert_close(packed[:, chunk(model, 0)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal_context", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
@torch.no_grad()
def test_a_chunk_moves_itself_and_what_follows(context: ContextConfig, causal_context: bool):
    model = build(context, causal_context=causal_context)
    latents, timesteps, actions = clip(model)
    before = model(latents, timesteps, actions, new_only=True)
    for j in range(K):
        frames = slice(model.layout.context + j * model.layout.new, model.layout.context + (j + 1) * model.layout.new)
        taken = slice(model.layout.actions + 8 * (j - 1), model.layout.actions + 8 * j)
        for changed, where in ((latents, frames), (timesteps, frames), (actions, taken)):
            kept = changed.clone()
            changed[:, where] += 1
            assert moved(before, model(latents, timesteps, actions, new_only=True)) == [own >= j for own in range(K)]
            changed.copy_(kept)


@pytest.mark.parametrize("causal_context", [False, True])
def test_no_gradient_comes_from_later_chunks(causal_context: bool):
    model = build(causal_context=causal_context)
    inputs = [value.requires_grad_() for value in clip(model)]
    velocity = model(*inputs, new_only=True)
    for j in range(K):
        latents, timesteps, actions = torch.autograd.grad(velocity[:, chunk(model, j)].sum(), inputs, retain_graph=True)
        frames, taken = model.layout.frames + 2 * j, model.layout.actions + 8 * j
        for gradient, seen in ((latents, frames), (timesteps, frames), (actions, taken)):
            assert (gradient[:, seen:] == 0).all()
        assert (latents[:, :frames].flatten(2).abs().amax((0, 2)) > 0).all()
        assert (actions[:, :taken].abs().amax((0, 2)) > 0).all()
        assert (timesteps[:, model.layout.context : frames].abs().amax(0) > 0).all()


@torch.no_grad()
def test_cached_and_new_only_equal_the_whole():
    model = build()
    latents, timesteps, actions = clip(model)
    whole = model(latents, timesteps, actions)
    cache = model.precompute(actions, latents[:, : model.layout.context])
    assert whole.shape == latents.shape
    torch.testing.assert_close(model(latents, timesteps, cache, new_only=True), whole[:, 2:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_noised_copies_of_a_packed_window_equal_one_by_one():
    model = build(causal_context=True)
    latents, timesteps, actions = clip(model)
    copies, timesteps = latents.repeat_interleave(2, 0), timesteps.repeat_interleave(2, 0)
    copies[:, 2:] += normal(tuple(copies[:, 2:].shape), 0, "noise")
    together = model(copies, timesteps, actions, new_only=True)
    torch.testing.assert_close(together, model(copies, timesteps, actions.repeat_interleave(2, 0), new_only=True))


def test_sums_of_actions_start_anew_with_every_chunk():
    encoder, single = build().action_encoder, layout(ContextConfig(), 8)
    actions_BTA = normal((B, single.packed(K).actions, A), 0, "actions")
    features_BTF = encoder.features(actions_BTA, single.packed(K))
    for j in range(K):
        own = slice(5 + 8 * j, 13 + 8 * j)
        alone_BTA = torch.cat((actions_BTA[:, :5], actions_BTA[:, own]), 1)
        assert torch.equal(features_BTF[:, own], encoder.features(alone_BTA, single)[:, 5:])
    assert (features_BTF[:, :5, A:] == 0).all()
