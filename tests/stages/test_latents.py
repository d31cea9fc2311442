from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stages.test_hallucination import make_episode
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.seed import normal, seed_everything
from wovr.core.types import Episode
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.episodes.windows import WindowConfig
from wovr.flow.schedule import FlowConfig, solver_sigmas
from wovr.stages import latent_cache
from wovr.stages.latents import LatentEpisodes, OwnMemory, WorldBatches, WorldLossConfig, world_loss

B, COPIES, C, SIDE = 3, 5, 4, 4
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
        "uniform_B": torch.tensor([0.0, 0.33, 0.99]),
        "memory_uniform_B": torch.tensor([0.1, 0.5, 0.9]),
    }
    clean, noise = batch["latents_BLChw"].double(), batch["noise_BFChw"].double()
    sigmas = solver_sigmas(FLOW)[:-1]
    seen, expected = [], torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        memory_sigma = ContextConfig().noise_sigma * float(batch["memory_uniform_B"][b])
        for j in range(COPIES):
            sigma = sigmas[int(5 * ((float(batch["uniform_B"][b]) + j / COPIES) % 1))]
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


def test_windows_on_own_memories_have_the_true_future_as_target(tmp_path: Path) -> None:
    episodes = [make_episode(number, steps) for number, steps in enumerate((24, 16))]
    codec = ConvCodec(ConvCodecConfig(channels=3, frame_width=8, group_width=16, blocks=1))
    data = LatentEpisodes(episodes, codec, RunLog(tmp_path, plain=True))
    places = [(0, 8), (1, 4), (1, 12)]  # the last has no room for a chunk
    latents_MChw = torch.arange(3.0)[:, None, None, None].expand(-1, 3, 2, 2) + 100

    own = OwnMemory(latents_MChw, places, share=0.75)
    mixed = WorldBatches(data, WindowConfig(), ContextConfig(), LAYOUT, batch_size=8, copies=1, seed=0, own=own).at(0)
    assert (mixed["latents_BLChw"][6:] < 50).all(), "a quarter stands on true memories"
    drawn = mixed["latents_BLChw"][:6, 1, 0, 0, 0] - 100
    assert set(drawn.tolist()) == {0.0, 1.0}
    for row, n in enumerate(drawn.int().tolist()):
        episode, t = places[n]
        first = int(data.start_E[episode])
        expected = data.groups_NChw[[first, first + t + 4, first + t + 8]].float()
        assert torch.equal(mixed["latents_BLChw"][row, [0, 2, 3]], expected)
        assert torch.equal(mixed["actions_BTA"][row, 5:], data.produced_NA[first + t + 1 : first + t + 9])


def test_own_memories_without_room_for_a_chunk_after_them_are_refused(tmp_path: Path) -> None:
    codec = ConvCodec(ConvCodecConfig(channels=3, frame_width=8, group_width=16, blocks=1))
    data = LatentEpisodes([make_episode(0, 8)], codec, RunLog(tmp_path, plain=True))
    own = OwnMemory(torch.zeros(2, 3, 2, 2), [(0, 4), (0, 8)], share=0.5)
    with pytest.raises(UserError, match="own_memory: expected episodes of more than 8 steps"):
        WorldBatches(data, WindowConfig(), ContextConfig(), LAYOUT, batch_size=8, copies=1, seed=0, own=own)


def test_an_episode_is_encoded_once_for_each_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(codec: ConvCodec, episode: Episode, group: int) -> torch.Tensor:
        encoded.append((episode.seed, group))
        return original(codec, episode, group)

    encoded: list[tuple[int, int]] = []
    original = latent_cache._encode
    monkeypatch.setattr(latent_cache, "_encode", encode)
    log, folder = RunLog(tmp_path, plain=True), tmp_path / "latents"
    episodes = [replace(make_episode(number, 16), seed=number) for number in range(3)]
    config = ConvCodecConfig(channels=3, frame_width=8, group_width=16, blocks=1)
    codec = ConvCodec(config)

    first = LatentEpisodes(episodes[:2], codec, log, still=True, folder=folder)
    assert encoded == [(0, 4), (0, 1), (1, 4), (1, 1)]
    encoded.clear()
    more = LatentEpisodes(episodes, codec, log, folder=folder)
    assert encoded == [(2, 4)], "the others are known, whatever the order or company"
    assert torch.equal(more.groups_NChw[: len(first.groups_NChw)], first.groups_NChw)
    assert torch.equal(more.groups_NChw, LatentEpisodes(episodes, codec, log).groups_NChw)
    encoded.clear()
    changed = replace(episodes[0], frames_THWC=255 - episodes[0].frames_THWC)
    LatentEpisodes([changed], codec, log, folder=folder)
    LatentEpisodes(episodes[:1], ConvCodec(config), log, folder=folder)
    assert encoded == [(0, 4), (0, 4)], "other frames and another codec have latents of their own"


def test_damaged_latents_are_named(tmp_path: Path) -> None:
    codec = ConvCodec(ConvCodecConfig(channels=3, frame_width=8, group_width=16, blocks=1))
    log, episodes = RunLog(tmp_path, plain=True), [make_episode(0, 16)]
    LatentEpisodes(episodes, codec, log, folder=tmp_path / "latents")
    (path,) = (tmp_path / "latents").glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{path.name}: expected a complete safetensors file"):
        LatentEpisodes(episodes, codec, log, folder=tmp_path / "latents")
