from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.codec.wans import make_codec
from tests.imagine.worlds import A, H, make_dit, make_model, make_start, make_starts
from wovr.core.errors import UserError
from wovr.core.types import no_motion
from wovr.dit.context import ContextConfig, timesteps
from wovr.flow.schedule import FlowConfig, solver_sigmas
from wovr.imagine.world_model import WorldModel


@pytest.fixture
def starts():
    return make_starts()


def draw(model, starts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = model.start(starts)
    noise = torch.randn((len(starts), *model.noise_shape(state)), generator=generator)
    actions = torch.rand((len(starts), H, A), generator=generator) * 2 - 1
    return state, actions, noise


def test_a_shared_start_is_encoded_once_and_nothing_is_encoded_again(starts):
    model = make_model()
    state, actions, noise = draw(model, [starts[0]] * 3 + [starts[1]] * 3)
    for _ in range(3):
        new, seen, state = model.step(state, actions, noise)
    frames = seen.frames_BTHWC
    assert model.codec.encoded == [(2, 5)]
    assert model.codec.decoded == [(6, 2)] * 3, "only the two new latents"
    assert new.shape == (6, 2, 3, 4, 4) and frames.shape == (6, H, 16, 16, 3) and frames.dtype == torch.uint8


def test_a_chunk_is_the_euler_solution_of_the_window(starts):
    """Against a loop written from the equations that knows nothing of caches."""
    model = make_model()
    state, actions, noise = draw(model, starts)
    new, seen, _ = model.step(state, actions, noise)
    latents = model.codec.encode(
        torch.from_numpy(np.stack([np.concatenate([s.reference_HWC[None], s.memory_MHWC]) for s in starts]))
    )
    memory = torch.from_numpy(np.stack([start.memory_actions_MA for start in starts]))
    still = torch.from_numpy(no_motion(A)).expand(len(starts), 1, A)
    window_actions = torch.cat([still, memory, actions], dim=1)
    assert window_actions.shape[1] == 13
    x, sigmas = noise, solver_sigmas(model.flow)
    for sigma, following in pairwise(sigmas):
        at = timesteps(model.layout, torch.full((len(starts),), sigma))
        assert (at[:, :2] == 0).all(), "the context is clean"
        v = model.dit(torch.cat([latents, x], dim=1), at, window_actions)[:, 2:]
        x = x + (following - sigma) * v
    torch.testing.assert_close(new, x, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen.frames_BTHWC, model.codec.decode(new, ())[0])


def test_memory_rolls_on_as_latents_with_its_actions(starts):
    model = make_model()
    state, actions, noise = draw(model, starts)
    new, _, following = model.step(state, actions, noise)
    assert torch.equal(following.memory_BLChw, new[:, -1:])
    assert torch.equal(following.memory_actions_BMA, actions[:, -4:])
    assert torch.equal(following.reference_BLChw, state.reference_BLChw)


def test_a_keyframe_brings_its_own_memory_and_actions(starts):
    """The same frames after other actions are another context."""
    model = make_model()
    _, actions, noise = draw(model, starts[:1])
    first = make_start(0, first=True)
    assert not torch.equal(model.start([first]).memory_BLChw, model.start(starts[:1]).memory_BLChw)
    state = model.start(starts[:1])
    still = replace(state, memory_actions_BMA=torch.from_numpy(no_motion(A)).expand_as(state.memory_actions_BMA))
    assert not torch.allclose(model.step(state, actions, noise)[0], model.step(still, actions, noise)[0])


def test_a_first_frame_fills_memory_with_the_reference():
    state = make_model().start([make_start(5, first=True)])
    assert torch.equal(state.reference_BLChw, state.memory_BLChw)


@pytest.mark.parametrize(
    "context", [ContextConfig(reference=False), ContextConfig(memory_frames=8), ContextConfig(memory_frames=1)]
)
def test_context_ablations_run(context):
    model = make_model(context)
    state, actions, noise = draw(model, [make_start(s, context.memory_frames) for s in range(2)])
    for _ in range(2):
        new, seen, state = model.step(state, actions, noise)
    if context.memory_frames == 1:
        assert torch.equal(state.memory_BLChw, model.codec.encode(seen.frames_BTHWC[:, -1:])), (
            "still latent of the current frame"
        )
    else:
        assert torch.equal(state.memory_BLChw[:, -1:], new[:, -1:])
    assert state.reference_BLChw.shape[1] == context.reference
    assert state.memory_actions_BMA.shape[1] == context.memory_frames
    blind = replace(state, decoder=state.decoder if context.memory_frames == 1 else None)
    unseen = model.advance(blind, actions, model.imagine(blind, actions, noise))
    assert torch.equal(unseen.memory_BLChw, model.step(state, actions, noise)[2].memory_BLChw), "with frames or without"


@pytest.mark.parametrize("rows", [[2, 0], []])
def test_select_and_join(starts, rows):
    model = make_model()
    state, actions, noise = draw(model, starts)
    some = state.select(rows)
    assert len(some) == len(rows)
    if rows:
        new, _, _ = model.step(some, actions[rows], noise[rows])
        torch.testing.assert_close(new, model.step(state, actions, noise)[0][rows], atol=1e-5, rtol=1e-5)
    both = some.join(model.start(starts[1:2]))
    assert torch.equal(both.memory_BLChw[-1], state.memory_BLChw[1])


def test_a_start_that_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"episode demo_7: expected 4 memory frames .* found 8 frames"):
        make_model().start([make_start(7, memory_frames=8)])


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return make_codec(tmp_path_factory.mktemp("vae"))[0]


def wan_model(codec, context=None):
    context = context or ContextConfig()
    return WorldModel(codec, make_dit(context), context, FlowConfig(steps=2))


@pytest.mark.parametrize(
    "context",
    [ContextConfig(), ContextConfig(reference=False), ContextConfig(memory_frames=8), ContextConfig(memory_frames=1)],
)
def test_frames_of_a_stream_follow_reference_memory_and_all_chunks_so_far(wan, context):
    """Wan's decoder remembers: what is seen is what decoding the whole stream shows."""
    model = wan_model(wan, context)
    starts = [make_start(seed, context.memory_frames, side=32) for seed in (0, 1, 0)]
    state, actions, noise = draw(model, starts)
    memory = 4 if context.memory_frames == 1 else context.memory_frames
    shown = np.stack([np.stack([s.reference_HWC, *[*s.memory_MHWC] * (memory // len(s.memory_MHWC))]) for s in starts])
    latents, frames = [wan.encode(torch.from_numpy(shown))], []
    for _ in range(3):
        new, seen, state = model.step(state, actions, noise)
        latents.append(new)
        frames.append(seen.frames_BTHWC)
    whole = wan.decode_all(torch.cat(latents, dim=1))[:, 1 + memory :]
    assert (torch.cat(frames, dim=1).int() - whole.int()).abs().max() <= 1
    if context.memory_frames == 1:
        torch.testing.assert_close(state.memory_BLChw, wan.encode(frames[-1][:, -1:]), atol=1e-5, rtol=1e-5)


def test_streams_that_others_leave_and_join_go_on_as_alone(wan):
    model = wan_model(wan)
    starts = [make_start(seed, side=32) for seed in range(3)]
    state, actions, noise = draw(model, starts)
    _, _, state = model.step(state, actions, noise)
    alone = state.select([2])
    joined = state.select([2, 0]).join(model.start(starts[1:2]))
    for rows in ([2, 0, 1], [2, 0, 1]):
        _, together, joined = model.step(joined, actions[rows], noise[rows])
        _, by_itself, alone = model.step(alone, actions[2:], noise[2:])
        assert (together.frames_BTHWC[0].int() - by_itself.frames_BTHWC[0].int()).abs().max() <= 1


def test_latents_alone_cost_no_decoding(wan, monkeypatch):
    model = wan_model(wan)
    state, actions, noise = draw(model, [make_start(0, side=32)])
    new, _, following = model.step(state, actions, noise)
    monkeypatch.setattr(wan.decoder, "forward", None)
    blind = model.start([make_start(0, side=32)], frames=False)
    unseen = model.imagine(blind, actions, noise)
    assert torch.equal(unseen, new)
    assert torch.equal(model.advance(blind, actions, unseen).memory_BLChw, following.memory_BLChw)


@pytest.mark.parametrize("context", [ContextConfig(), ContextConfig(memory_frames=8), ContextConfig(memory_frames=1)])
def test_features_of_imagined_and_of_true_latents_come_from_the_same_pass(context):
    """What the last Euler step saw is given as the truth, with noise that leads back to it."""
    model = make_model(context)
    starts = [make_start(seed, context.memory_frames) for seed in (0, 1)]
    state, actions, noise = draw(model, starts)
    seen_by_network = []
    model.dit.register_forward_pre_hook(lambda _, inputs: seen_by_network.append(inputs[0]))
    new, seen, _ = model.step(state, actions, noise)
    assert len(seen_by_network) == 2, "no pass beside those of the solver"
    assert seen.features_BNhwD.shape == (2, 2, 2, 2, 24)
    at_last, sigma = seen_by_network[-1][:, -2:], solver_sigmas(model.flow)[-2]
    same = model.features(state, actions, at_last, at_last)
    torch.testing.assert_close(same, seen.features_BNhwD)
    # Of the chunk as it ended, the truth: noised to the same sigma by other noise, it is read differently.
    other = model.features(state, actions, new, noise)
    torch.testing.assert_close(seen_by_network[-1][:, -2:], (1 - sigma) * new + sigma * noise)
    assert not torch.allclose(other, same)


def test_true_frames_are_encoded_as_they_follow_their_start():
    model = make_model()
    starts = [make_start(seed) for seed in (0, 1)]
    frames = torch.randint(0, 256, (2, H, 16, 16, 3), dtype=torch.uint8)
    stream = [
        np.concatenate([start.reference_HWC[None], start.memory_MHWC, of])
        for start, of in zip(starts, frames, strict=True)
    ]
    assert torch.equal(model.encode(starts, frames), model.codec.encode(torch.from_numpy(np.stack(stream)))[:, 2:])
