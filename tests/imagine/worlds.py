"""A world small enough to compute exactly: a real ActionDiT between a fake codec and a fake reward."""

import numpy as np
import torch
from einops import rearrange, reduce, repeat

from wovr.core.types import StartState, Task, no_motion
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.envs.base import Observation
from wovr.flow.schedule import FlowConfig
from wovr.imagine.world import ImaginedWorld
from wovr.imagine.world_model import WorldModel
from wovr.policy.base import PolicyBatch

H, A, IMAGE = 8, 3, 16


class FakeCodec:
    """Mean colour of 4 x 4 pixels and four frames, and back. Counts its calls."""

    channels, spatial_factor, temporal_factor, stride = 3, 4, 4, 1
    device = torch.device("cpu")

    def __init__(self):
        self.encoded, self.decoded = [], []

    def encode(self, frames_BTHWC):
        self.encoded.append(tuple(frames_BTHWC.shape[:2]))
        x = torch.cat([frames_BTHWC[:, :1]] * 4 + [frames_BTHWC[:, 1:]], dim=1).float() / 127.5 - 1
        return reduce(x, "B (L f) (h p) (w q) C -> B L C h w", "mean", f=4, p=4, q=4)

    def start(self, latents_BLChw):
        return ()

    def decode(self, latents_BLChw, state):
        self.decoded.append(tuple(latents_BLChw.shape[:2]))
        x = repeat(latents_BLChw, "B L C h w -> B (L f) (h p) (w q) C", f=4, p=4, q=4)
        # Frames of a group differ, so that a test notices a wrong order.
        shade = torch.arange(x.shape[1]).remainder(4)[None, :, None, None, None] / 16
        return ((x + shade + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), state


class FakeReward:
    """The brightness of a frame, times the word count of its instruction, as a 'probability' per frame."""

    threshold, hold = 100.0, 1
    reads_features = False

    def judge(self, seen, instructions):
        words = torch.tensor([len(instruction.split()) for instruction in instructions])
        return seen.frames_BTHWC.float().mean(dim=(2, 3, 4)) / 255 * words[:, None]


class FakePolicy:
    """Tokens are the uniforms in tenths; actions depend on them and on the frame. Counts what it acts on."""

    chunk_length, action_dim = H, A
    views, proprio_dim = 1, 0

    def __init__(self):
        self.acted = []

    def act(self, frames_BHWC, instructions, *, temperature, uniforms_BK):
        assert len(frames_BHWC) == len(instructions)
        self.acted.append(len(frames_BHWC))
        if uniforms_BK is None:
            uniforms_BK = torch.full((len(frames_BHWC), H * A), 0.5)
        bright_B11 = torch.from_numpy(frames_BHWC).float().mean(dim=(1, 2, 3))[:, None, None] / 255
        actions = rearrange(uniforms_BK, "B (H A) -> B H A", H=H) * 2 - 1 + bright_B11
        return PolicyBatch(actions.clamp(-1, 1).numpy(), (10 * uniforms_BK).long(), uniforms_BK.clamp_min(1e-6).log())


class FeelingPolicy(FakePolicy):
    """Looks through `views` cameras and asks for `proprio_dim` numbers of a `ScriptedSimulator`; fails where what it
    is shown is not of one moment, or not what it asks for. `steps` are the numbers that it saw."""

    def __init__(self, views, proprio_dim):
        super().__init__()
        self.views, self.proprio_dim, self.steps = views, proprio_dim, []

    def act(self, frames_BHWC, instructions, **rest):
        step_B = frames_BHWC[:, 0, 0, 0].astype(int)
        assert ("wrist_BHWC" in rest, "proprio_BP" in rest) == (self.views == 2, self.proprio_dim > 0)
        if self.views == 2:
            assert np.array_equal(rest.pop("wrist_BHWC"), frames_BHWC + 1)
        if self.proprio_dim:
            assert np.array_equal(rest.pop("proprio_BP"), np.stack([step_B, step_B / 2], axis=1))
        self.steps += step_B.tolist()
        return super().act(frames_BHWC, instructions, **rest)


class ScriptedSimulator:
    """Success is on at given steps; a frame shows the number of its step. Counts the env steps it computes.

    The wrist view shows one more, and the robot feels the number and its half. Environment `loses[0]` is lost at its
    step `loses[1]`.
    """

    suite, image_size, action_dim, horizon, num_initial_states, max_batch = "scripted", IMAGE, A, 24, 5, 8
    tasks = (Task(0, "never", "never"), Task(1, "at nine", "at nine"))

    def __init__(self, loses=(-1, -1)):
        self.computed = self.rendered = 0
        self.loses = loses

    def reset(self, starts):
        self.task_B = np.array([start.task_id for start in starts])
        self.step_B = np.zeros(len(starts), dtype=np.int64)
        return self._observe()

    def step(self, actions_BA, active_B=None, *, render=True):
        assert actions_BA.shape == (len(self.step_B), A)
        self.computed += int(active_B.sum())
        self.rendered += int(render)
        self.step_B += active_B
        return self._observe()

    def _observe(self):
        frames = np.zeros((len(self.step_B), IMAGE, IMAGE, 3), np.uint8) + self.step_B[:, None, None, None].astype(
            np.uint8
        )
        success = (self.task_B == 1) & (self.step_B == 10)
        lost = (np.arange(len(self.step_B)) == self.loses[0]) & (self.step_B >= self.loses[1])
        felt = self.step_B[:, None] * np.array([1, 0.5], np.float32)
        return Observation(
            frames, success, self.step_B[:, None].astype(np.float64), lost, frames + 1, felt.astype(np.float32)
        )

    def close(self): ...


def make_dit(context=None, seed=0):
    torch.manual_seed(seed)
    config = DiTConfig(width=24, depth=2, heads=2, ffn_width=48, channels=3, action_dim=A)
    dit = ActionDiT(config, layout(context or ContextConfig(), H)).eval().requires_grad_(False)
    for parameter in dit.parameters():  # nothing may start at zero here: actions and head must matter
        parameter.add_(0.2 * torch.randn_like(parameter))
    return dit


def make_model(context=None):
    return WorldModel(FakeCodec(), make_dit(context), context or ContextConfig(), FlowConfig(steps=2))


def make_world(horizon=24, threshold=100.0, hold=1):  # bright frames and long instructions pass 2
    reward = FakeReward()
    reward.threshold, reward.hold = threshold, hold
    return ImaginedWorld(make_model(), reward, horizon)


def make_start(seed, memory_frames=4, first=False, instruction="put it there", side=IMAGE):
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (1 + memory_frames, side, side, 3), dtype=np.uint8)
    actions = random.uniform(-1, 1, (memory_frames, A)).astype(np.float32)
    if first:
        frames[1:], actions[:] = frames[0], no_motion(A)
    reason = "first_frame" if first else "gripper"
    return StartState(frames[0], frames[1:], actions, instruction, seed % 2, f"demo_{seed}", 0 if first else 9, reason)


def make_starts():
    return [make_start(0), make_start(1, first=True), make_start(2), make_start(3, instruction="lift it")]
