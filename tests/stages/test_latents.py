from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stages.test_hallucination import make_episode
from wovr.codec.base import Codec
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.seed import normal, seed_everything, stream
from wovr.core.types import Frames
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.episodes.windows import WindowConfig
from wovr.flow.schedule import FlowConfig, solver_sigmas, train_sigmas, train_weights
from wovr.imagine.load import StoredCodec, save_codec
from wovr.stages import latent_cache
from wovr.stages.latents import LatentEpisodes, OwnMemory, WorldBatches, WorldLossConfig, world_loss

B, COPIES, CHUNKS, C, SIDE = 3, 5, 3, 4, 4
LAYOUT = layout(ContextConfig(), 8)
FLOW = FlowConfig(train_sigmas="grid")


def test_copies_cover_the_grid_of_sigmas_and_give_the_mean_of_their_losses() -> None:
    seed_everything(0)
    dit = ActionDiT(DiTConfig(width=24, depth=2, heads=2, ffn_width=48, channels=C, causal_context=True), LAYOUT)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = {
        "latents_BLChw": normal((B, LAYOUT.frames, C, SIDE, SIDE), 0, "latents"),
        "actions_BTA": normal((B, LAYOUT.actions, 3), 0, "actions"),
        "noise_BFChw": normal((B, LAYOUT.context + COPIES * LAYOUT.new, C, SIDE, SIDE), 0, "noise"),
        "uniform_BK": torch.tensor([[0.0], [0.33], [0.99]]),
        "memory_uniform_B": torch.tensor([0.1, 0.5, 0.9]),
    }
    clean, noise = batch["latents_BLChw"].double(), batch["noise_BFChw"].double()
    sigmas = solver_sigmas(FLOW)[:-1]
    seen, expected = [], torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        memory_sigma = ContextConfig().noise_sigma * float(batch["memory_uniform_B"][b])
        for j in range(COPIES):
            sigma = sigmas[int(5 * ((float(batch["uniform_BK"][b]) + j / COPIES) % 1))]
            seen.append((b, sigma))
            new = slice(LAYOUT.context + j * LAYOUT.new, LAYOUT.context + (j + 1) * LAYOUT.new)
            window = clean[b].clone()
            window[1] = (1 - memory_sigma) * clean[b, 1] + memory_sigma * noise[b, 1]
            window[2:] = (1 - sigma) * clean[b, 2:] + sigma * noise[b, new]
            times = torch.tensor([[0, 0, 1000 * sigma, 1000 * sigma]])
            with torch.no_grad():
                velocity = dit(window[None].float(), times, batch["actions_BTA"][b : b + 1], new_only=True)[0].double()
            change = (clean[b, 2:] - clean[b, 1]).square().mean(1).sqrt()
            weight = 1 + 4 * change / (change + 0.5)
            error = (velocity - (noise[b, new] - clean[b, 2:])).square().mean(1)
            expected[b] += (weight * error).mean() / COPIES

    loss_B, logs = world_loss(ContextConfig(), FLOW, LAYOUT, WorldLossConfig(copies=COPIES))(dit, batch)
    assert loss_B.shape == logs["velocity_error"].shape == (B,)
    torch.testing.assert_close(loss_B.double(), expected, rtol=1e-3, atol=1e-3)
    for b in range(B):
        assert sorted(sigma for window, sigma in seen if window == b) == sorted(sigmas)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("train_weight", ["none", "bell"])
def test_loss_of_a_packed_window_is_the_mean_over_its_chunks_each_at_its_sigma(train_weight: str, copies: int) -> None:
    seed_everything(0)
    dit = ActionDiT(DiTConfig(width=24, depth=2, heads=2, ffn_width=48, channels=C, causal_context=True), LAYOUT)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    flow, packed = FlowConfig(train_weight=train_weight), LAYOUT.packed(CHUNKS)
    uniform_BK = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.7], [0.0, 0.6, 0.8]])
    batch = {
        "latents_BLChw": normal((B, packed.frames, C, SIDE, SIDE), 0, "latents"),
        "actions_BTA": normal((B, packed.actions, 3), 0, "actions"),
        "noise_BFChw": normal((B, 2 + copies * packed.new, C, SIDE, SIDE), 0, "noise"),
        "uniform_BK": uniform_BK,
        "memory_uniform_B": torch.tensor([0.1, 0.5, 0.9]),
    }
    clean, noise = batch["latents_BLChw"], batch["noise_BFChw"]
    expected = torch.zeros(B)
    for b in range(B):
        for copy in range(copies):
            sigma_K = train_sigmas(flow, (uniform_BK[b] + copy / copies) % 1)
            window, times = clean[b].clone(), torch.zeros(1, packed.frames)
            window[1].lerp_(noise[b, 1], float(0.2083 * batch["memory_uniform_B"][b]))
            for j in range(CHUNKS):
                new = slice(2 + 2 * j, 4 + 2 * j)
                drawn = noise[b, 2 + 6 * copy :][2 * j : 2 * j + 2]
                window[new].lerp_(drawn, sigma_K[j])
                times[:, new] = 1000 * sigma_K[j]
            with torch.no_grad():
                velocity = dit(window[None], times, batch["actions_BTA"][b : b + 1], new_only=True)[0]
            for j in range(CHUNKS):
                new = slice(2 + 2 * j, 4 + 2 * j)
                change = (clean[b, new] - clean[b, 1 + 2 * j]).square().mean(1).sqrt()
                drawn = noise[b, 2 + 6 * copy :][2 * j : 2 * j + 2]
                error = (velocity[2 * j : 2 * j + 2] - (drawn - clean[b, new])).square().mean(1)
                weight = (1 + 4 * change / (change + 0.5)) * train_weights(flow, sigma_K[j])
                expected[b] += (weight * error).mean() / (CHUNKS * copies)

    loss_B, logs = world_loss(ContextConfig(), flow, packed, WorldLossConfig(copies=copies))(dit, batch)
    assert loss_B.shape == logs["velocity_error"].shape == (B,)
    torch.testing.assert_close(loss_B, expected, rtol=1e-3, atol=1e-3)


def test_packed_windows_follow_a_clip(tmp_path: Path) -> None:
    episodes = [make_episode(number, steps) for number, steps in enumerate((32, 16, 40))]
    codec, log = write_codec(tmp_path / "codec.safetensors"), RunLog(tmp_path, plain=True)
    data = LatentEpisodes(episodes, codec, log, ContextConfig(), 8 * CHUNKS)
    windows = WindowConfig(cold_start=0.2, static=0.2)
    packed = LAYOUT.packed(CHUNKS)
    batches = WorldBatches(data, windows, packed, batch_size=64, copies=1, seed=0)
    batch, again = batches.at(3), batches.at(3)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["uniform_BK"].shape == (64, CHUNKS) and len(batch["uniform_BK"].unique()) > 60 * CHUNKS
    assert batch["noise_BFChw"].shape[1] == packed.frames

    episode_B, t_B = batches.index.draw(stream(0, "world-windows", 3), 64)
    assert set(episode_B.tolist()) == {0, 2}, "an episode of 16 steps has no room for 24 new frames"
    assert {-24, 0} < set(t_B.tolist())
    for row, (episode, t) in enumerate(zip(episode_B.tolist(), t_B.tolist(), strict=True)):
        first = int(data.start_E[episode])
        ends = [0] + [max(t + 4 * group, 0) for group in range(packed.frames - 1)]
        made = [0] + [max(frame, 0) for frame in range(t - 3, t + 25)]
        assert torch.equal(batch["latents_BLChw"][row], data.latents_NChw[[first + end for end in ends]].float())
        assert torch.equal(batch["actions_BTA"][row], data.produced_NA[[first + frame for frame in made]])

    longer = LatentEpisodes(episodes, codec, log, ContextConfig(), 48)
    with pytest.raises(UserError, match="expected at least one of 48 steps or more, found 3 shorter"):
        WorldBatches(longer, windows, LAYOUT.packed(6), batch_size=64, copies=1, seed=0)


def write_codec(path: Path, seed: int = 0) -> StoredCodec:
    seed_everything(seed)
    save_codec(path, ConvCodec(ConvCodecConfig(channels=3, frame_width=8, group_width=16, blocks=1)))
    return StoredCodec(path)


def test_windows_on_own_memories_have_the_true_future_as_target(tmp_path: Path) -> None:
    episodes = [make_episode(number, steps) for number, steps in enumerate((24, 16))]
    codec = write_codec(tmp_path / "codec.safetensors")
    data = LatentEpisodes(episodes, codec, RunLog(tmp_path, plain=True), ContextConfig(), 8)
    places = [(0, 8), (1, 4), (1, 12)]  # the last has no room for a chunk
    latents_MChw = torch.arange(3.0)[:, None, None, None].expand(-1, 3, 2, 2) + 100

    own = OwnMemory(latents_MChw, places, share=0.75)
    mixed = WorldBatches(data, WindowConfig(), LAYOUT, batch_size=8, copies=1, seed=0, own=own).at(0)
    assert (mixed["latents_BLChw"][6:] < 50).all(), "a quarter stands on true memories"
    drawn = mixed["latents_BLChw"][:6, 1, 0, 0, 0] - 100
    assert set(drawn.tolist()) == {0.0, 1.0}
    for row, n in enumerate(drawn.int().tolist()):
        episode, t = places[n]
        first = int(data.start_E[episode])
        expected = data.latents_NChw[[first, first + t + 4, first + t + 8]].float()
        assert torch.equal(mixed["latents_BLChw"][row, [0, 2, 3]], expected)
        assert torch.equal(mixed["actions_BTA"][row, 5:], data.produced_NA[first + t + 1 : first + t + 9])


def test_own_memories_without_room_for_a_chunk_after_them_are_refused(tmp_path: Path) -> None:
    codec = write_codec(tmp_path / "codec.safetensors")
    data = LatentEpisodes([make_episode(0, 8)], codec, RunLog(tmp_path, plain=True), ContextConfig(), 8)
    own = OwnMemory(torch.zeros(2, 3, 2, 2), [(0, 4), (0, 8)], share=0.5)
    with pytest.raises(UserError, match="own_memory: expected episodes of more than 8 steps"):
        WorldBatches(data, WindowConfig(), LAYOUT, batch_size=8, copies=1, seed=0, own=own)


def test_an_episode_is_encoded_once_for_each_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[tuple[int, str]] = []

    def counted(what: str) -> Callable[..., torch.Tensor]:
        def encode(codec: Codec, frames: Frames, *rest: int) -> torch.Tensor:
            encoded.append((int(frames[0, 0, 0, 0]), what))
            return original(codec, frames, *rest)

        original = getattr(latent_cache, what)
        return encode

    for what in ("_episode", "_stills"):
        monkeypatch.setattr(latent_cache, what, counted(what))
    log, folder = RunLog(tmp_path, plain=True), tmp_path / "latents"
    episodes = [make_episode(number, 16) for number in range(3)]
    for number, episode in enumerate(episodes):
        episode.frames_THWC[0, 0, 0] = number
    codec = write_codec(tmp_path / "codec.safetensors")

    still = ContextConfig(memory_frames=1)
    first = LatentEpisodes(episodes[:2], codec, log, still, 8, folder=folder)
    assert encoded == [(0, "_episode"), (0, "_stills"), (1, "_episode"), (1, "_stills")]
    encoded.clear()
    more = LatentEpisodes(episodes, codec, log, ContextConfig(), 8, folder=folder)
    assert encoded == [(2, "_episode")], "the others are known, whatever the order or company"
    assert torch.equal(more.latents_NChw[: len(first.latents_NChw)], first.latents_NChw)
    assert torch.equal(more.latents_NChw, LatentEpisodes(episodes, codec, log, ContextConfig(), 8).latents_NChw)
    encoded.clear()
    changed = replace(episodes[0], frames_THWC=255 - episodes[0].frames_THWC)
    LatentEpisodes([changed], codec, log, ContextConfig(), 8, folder=folder)
    other = write_codec(tmp_path / "other.safetensors", seed=1)
    LatentEpisodes(episodes[:1], other, log, ContextConfig(), 8, folder=folder)
    assert encoded == [(255, "_episode"), (0, "_episode")], "other frames and another codec have latents of their own"


def test_damaged_latents_are_named(tmp_path: Path) -> None:
    codec = write_codec(tmp_path / "codec.safetensors")
    log, episodes = RunLog(tmp_path, plain=True), [make_episode(0, 16)]
    LatentEpisodes(episodes, codec, log, ContextConfig(), 8, folder=tmp_path / "latents")
    (path,) = (tmp_path / "latents").glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{path.name}: expected a complete safetensors file"):
        LatentEpisodes(episodes, codec, log, ContextConfig(), 8, folder=tmp_path / "latents")
