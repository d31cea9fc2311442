import torch

from wovr.core.seed import normal, seed_everything
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.flow.schedule import FlowConfig, solver_sigmas
from wovr.stages.latents import WorldLossConfig, world_loss

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
