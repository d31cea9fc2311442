import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from wovr.core.seed import normal, seed_everything
from wovr.dit.action import positions
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import PATCH, ActionDiT, DiTConfig
from wovr.dit.rope import rotation

B, C, A, SIDE = 2, 4, 3, 4
LAYOUT = layout(ContextConfig(), 8)


def build(context: ContextConfig | None = None, **switches: object) -> ActionDiT:
    """A small network with every weight drawn, so that no channel is silent."""
    seed_everything(0)
    config = DiTConfig(width=24, depth=3, heads=2, ffn_width=48, channels=C, action_dim=A, **switches)
    model = ActionDiT(config, layout(context or ContextConfig(), 8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs(model: ActionDiT) -> tuple[Tensor, Tensor, Tensor]:
    L, T = model.layout.frames, model.layout.actions
    latents_BLChw = normal((B, L, C, SIDE, SIDE), 0, "latents")
    timesteps_BL = torch.zeros(B, L)
    timesteps_BL[:, model.layout.context :] = torch.tensor([[952.0], [556.0]])
    return latents_BLChw, timesteps_BL, normal((B, T, A), 0, "actions")


def test_wan_size_has_the_published_parameter_count():
    config = DiTConfig(
        width=3072,
        depth=30,
        heads=24,
        ffn_width=14336,
        channels=48,
        action_dim=7,
        action_positions=False,
        action_sums=False,
    )
    with torch.device("meta"):
        model = ActionDiT(config, LAYOUT)
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_025_334_464


@pytest.mark.parametrize(
    "context",
    [
        ContextConfig(),
        ContextConfig(memory_frames=1),
        ContextConfig(memory_frames=8),
        ContextConfig(reference=False),
        ContextConfig(reference=False, memory_frames=1),
    ],
)
@torch.no_grad()
def test_every_context_runs_and_keeps_shapes(context):
    model = build(context)
    latents, timesteps, actions = inputs(model)
    assert model(latents, timesteps, actions).shape == latents.shape
    assert model(latents, timesteps, actions, new_only=True).shape == (B, 2, C, SIDE, SIDE)


@torch.no_grad()
def test_patches_are_cut_as_by_wans_convolution_and_laid_as_by_wans_head():
    """Patches in come channel first (a Conv3d of stride 1 x 2 x 2), patches out channel last, as Wan's weights need."""
    model = build()
    latents_BLChw, timesteps_BL, actions = inputs(model)
    tokens, patches = [], normal((B, 4, 4, 2 * 2 * C), 0, "patches")
    model.patch_embedding.register_forward_hook(lambda module, args, output: tokens.append(output))
    model.head.register_forward_hook(lambda module, args, output: patches)
    velocity_BLChw = model(latents_BLChw, timesteps_BL, actions)

    weight = model.patch_embedding.weight.unflatten(1, (C, 1, 2, 2))
    expected = torch.conv3d(latents_BLChw.transpose(1, 2), weight, model.patch_embedding.bias, stride=(1, 2, 2))
    torch.testing.assert_close(tokens[0], expected.flatten(3).permute(0, 2, 3, 1))
    for n in range(4):
        row, column = divmod(n, 2)
        cell = velocity_BLChw[:, :, :, 2 * row + 1, 2 * column]
        torch.testing.assert_close(cell, patches[:, :, n].unflatten(-1, (2, 2, C))[:, :, 1, 0])


@torch.no_grad()
def test_new_only_equals_the_slice_of_the_full_output():
    model = build()
    full = model(*inputs(model))
    torch.testing.assert_close(model(*inputs(model), new_only=True), full[:, 2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal_context", [False, True])
@torch.no_grad()
def test_cached_equals_uncached(causal_context):
    model = build(causal_context=causal_context)
    latents, timesteps, actions = inputs(model)
    cache = model.precompute(actions, latents[:, : model.layout.context])
    torch.testing.assert_close(
        model(latents, timesteps, cache, new_only=True), model(latents, timesteps, actions, new_only=True)
    )


@pytest.mark.parametrize("causal_context", [False, True])
@torch.no_grad()
def test_predicted_data_are_where_the_velocity_leads(causal_context):
    """x_sigma - sigma v is the memory's last latent and what the last layer says; a velocity network with these weights
    says it too."""
    model = build(causal_context=causal_context, prediction="data")
    latents_BLChw, timesteps_BL, actions = inputs(model)
    velocity_BNChw = model(latents_BLChw, timesteps_BL, actions, new_only=True)
    sigma = timesteps_BL[:, 2:, None, None, None] / 1000
    said = build(causal_context=causal_context)(latents_BLChw, timesteps_BL, actions, new_only=True)
    data_BNChw = latents_BLChw[:, 2:] - sigma * velocity_BNChw
    torch.testing.assert_close(data_BNChw, latents_BLChw[:, 1:2] + said, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_predicted_data_do_not_depend_on_pure_noise():
    model = build(prediction="data")
    latents_BLChw, timesteps_BL, actions = inputs(model)
    timesteps_BL[:, 2:] = 1000
    other_BLChw = latents_BLChw.clone()
    other_BLChw[:, 2:] = normal(other_BLChw[:, 2:].shape, 1, "noise")
    found = [x[:, 2:] - model(x, timesteps_BL, actions, new_only=True) for x in (latents_BLChw, other_BLChw)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [ContextConfig(), ContextConfig(memory_frames=8), ContextConfig(reference=False)])
@torch.no_grad()
def test_causal_context_is_attention_under_a_block_causal_mask(context, monkeypatch):
    """The shared pass over the context against the whole window at once, with new keys hidden from context queries."""
    model = build(context, causal_context=True, cross_attention=False)
    latents, timesteps, actions = inputs(model)
    causal = model(latents, timesteps, actions, new_only=True)

    known = model.layout.context * (SIDE // PATCH) ** 2

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2)
        scores[..., :known, known:] = -torch.inf
        return scores.softmax(-1) @ v

    whole = build(context, cross_attention=False)
    monkeypatch.setattr("wovr.dit.block.attend", masked)
    torch.testing.assert_close(causal, whole(latents, timesteps, actions)[:, model.layout.context :])


def test_noised_copies_of_a_window_equal_one_by_one_in_values_and_gradients():
    model = build(causal_context=True)
    latents, timesteps, actions = inputs(model)
    copies = latents.repeat_interleave(3, 0)
    copies[:, 2:] += normal(tuple(copies[:, 2:].shape), 0, "noise")
    timesteps = timesteps.repeat_interleave(3, 0)

    def gradients(output: Tensor) -> list[Tensor]:
        model.zero_grad()
        output.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    together = model(copies, timesteps, actions, new_only=True)
    apart = model(copies, timesteps, actions.repeat_interleave(3, 0), new_only=True)
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(gradients(together), gradients(apart), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("adaln", "cross_attention"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("context", [ContextConfig(), ContextConfig(memory_frames=1)])
@torch.no_grad()
def test_each_channel_carries_every_action(context, adaln, cross_attention):
    model = build(context, adaln=adaln, cross_attention=cross_attention)
    latents, timesteps, actions = inputs(model)
    before = model(latents, timesteps, actions)
    for t in range(model.layout.actions):
        changed = actions.clone()
        changed[:, t] += 1
        assert (model(latents, timesteps, changed) - before).abs().amax() > 1e-4, f"action {t} has no effect"


@torch.no_grad()
def test_without_channels_actions_have_no_effect_and_no_parameters():
    model = build(adaln=False, cross_attention=False)
    latents, timesteps, actions = inputs(model)
    torch.testing.assert_close(model(latents, timesteps, actions + 1), model(latents, timesteps, actions))
    assert not [name for name, _ in model.named_parameters() if "action" in name or "cross" in name or "norm3" in name]


@torch.no_grad()
def test_fresh_adaln_channel_adds_nothing_to_the_time_embedding():
    model = ActionDiT(DiTConfig(width=24, depth=1, heads=2, ffn_width=48, channels=C), LAYOUT)
    cache = model.precompute(normal((B, 13, A), 0, "actions"), normal((B, 2, C, SIDE, SIDE), 0, "latents"))
    assert torch.equal(cache.adaln_BLD, torch.zeros(B, 4, 24))


@torch.no_grad()
@pytest.mark.parametrize("sums", [False, True])
def test_adaln_reaches_its_own_latent_frame_and_with_sums_the_following(sums: bool):
    model = build(cross_attention=False, action_sums=sums)
    latents, _, actions = inputs(model)
    changed = actions.clone()
    changed[:, 7] += 1  # 1 reference + 4 memory + third new frame
    before, after = (model.precompute(a, latents[:, :2]).adaln_BLD for a in (actions, changed))
    moved_L = (after - before).abs().amax((0, 2))
    assert (moved_L > 0).tolist() == [False, False, True, sums]


def test_sums_of_actions_start_after_the_context():
    encoder = build().action_encoder
    actions_BTA = normal((B, LAYOUT.actions, A), 0, "actions")
    features_BTF = encoder.features(actions_BTA, LAYOUT)
    torch.testing.assert_close(features_BTF[..., :A], actions_BTA)
    assert (features_BTF[:, :5, A:] == 0).all()
    torch.testing.assert_close(features_BTF[:, 7, A:], actions_BTA[:, 5:8].sum(1) / 4)


@torch.no_grad()
def test_action_order_matters_to_cross_attention_only_with_positions():
    for told in (True, False):
        model = build(adaln=False, action_positions=told, action_sums=False)
        latents, timesteps, actions = inputs(model)
        difference = (model(latents, timesteps, actions.flip(1)) - model(latents, timesteps, actions)).abs().amax()
        assert (difference > 1e-3) == told


@torch.no_grad()
def test_modulation_per_frame_equals_modulation_per_token():
    """The block's broadcast over a frame's tokens against the same vectors written out for each token."""
    model = build()
    block, S = model.blocks[0], 4
    x_BLSD, time_BL6D = normal((B, 4, S, 24), 0, "x"), normal((B, 4, 6, 24), 0, "time")
    cache = model.precompute(normal((B, 13, A), 0, "actions"), normal((B, 2, C, SIDE, SIDE), 0, "latents"))
    angles = rotation(4, 2, 2, 12, torch.device("cpu"))
    per_frame, _ = block(x_BLSD, time_BL6D, angles, cache.actions[0], 4)
    per_token, _ = block(
        x_BLSD.reshape(B, 4 * S, 1, 24), time_BL6D.repeat_interleave(S, 1), angles, cache.actions[0], 4 * S
    )
    torch.testing.assert_close(per_frame.flatten(1, 2), per_token.flatten(1, 2), rtol=1e-4, atol=1e-4)


def test_float32_and_autocast_and_plain_bfloat16_agree():
    model = build()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    latents, timesteps, actions = inputs(model)
    with torch.no_grad():
        exact = model(latents, timesteps, actions)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(latents, timesteps, actions)
        plain = model.bfloat16()(latents, timesteps, actions)
    assert plain.dtype == torch.bfloat16
    for rounded in (autocast, plain):
        assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


def test_a_network_used_under_inference_mode_can_still_be_trained():
    model = build()
    rotation.cache_clear()
    positions.cache_clear()
    with torch.inference_mode():
        model(*inputs(model))
    model(*inputs(model)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValidationError, match="multiple of twice the heads"):
        DiTConfig(width=190, heads=6)
