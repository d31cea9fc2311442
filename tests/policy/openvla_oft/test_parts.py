"""Actions, pictures and prompts, number by number."""

import numpy as np
import torch

from tests.policy.openvla_oft.reference import CONFIG, KEY, P, statistics, tokenizer
from wovr.policy.openvla_oft.actions import ActionTokens, ProprioRange
from wovr.policy.openvla_oft.assets import stand_in
from wovr.policy.openvla_oft.images import normalise, resize
from wovr.policy.openvla_oft.prompt import PADDING, Prompts, byte_tokenizer, read_tokenizer

SECTION = statistics()[KEY]


def test_tokens_are_those_of_openvla() -> None:
    """As its action tokenizer bins: numpy's digitize over 256 edges, ids counted down from the vocabulary's end."""
    bins = ActionTokens(SECTION, 256)
    rng = np.random.default_rng(0)
    actions_BHA = rng.uniform(-1.2, 1.2, (50, 2, 7)).astype(np.float32)
    actions_BHA[..., -1] = np.sign(actions_BHA[..., -1])
    data = actions_BHA.astype(np.float64)
    data[..., -1] = data[..., -1] < 0  # -1 is open, which is 1 in the data
    low, high = (np.array(SECTION["action"][key]) for key in ("q01", "q99"))
    normal = 2 * (data - low) / (high - low + 1e-8) - 1
    normal[..., -1] = data[..., -1]
    ids = 32000 - np.digitize(np.clip(normal, -1, 1), np.linspace(-1, 1, 256))
    tokens_BK = bins.encode(torch.from_numpy(actions_BHA))
    assert np.array_equal(tokens_BK.numpy() + 31744, ids.reshape(50, -1))
    assert tokens_BK.dtype == torch.int64 and tokens_BK.min() == 0 and tokens_BK.max() == 255


def test_actions_come_back_within_half_a_bin() -> None:
    bins = ActionTokens(SECTION, 256)
    low, high = (torch.tensor(SECTION["action"][key], dtype=torch.float32) for key in ("q01", "q99"))
    share = torch.rand(40, 2, 7, generator=torch.Generator().manual_seed(0))
    actions_BHA = low + share * (high - low)
    actions_BHA[..., -1] = torch.where(actions_BHA[..., -1] > 0.5, 1.0, -1.0)
    found_BHA = bins.decode(bins.encode(actions_BHA))
    assert found_BHA.dtype == torch.float32 and torch.equal(found_BHA[..., -1], actions_BHA[..., -1])
    assert ((found_BHA - actions_BHA)[..., :-1].abs() <= (high - low)[:-1] / 255 + 1e-6).all()


def test_the_extreme_tokens_stand_for_the_extreme_centres() -> None:
    bins = ActionTokens(stand_in(CONFIG).section, 256)
    tokens_BK = torch.tensor([[0, 1, 2, 253, 254, 255, 0]])
    expected = [254 / 255, 254 / 255, 252 / 255, -250 / 255, -252 / 255, -254 / 255, -1]
    torch.testing.assert_close(bins.decode(tokens_BK)[0, 0], torch.tensor(expected))


def test_the_gripper_is_open_from_one_half_on() -> None:
    """No centre is exactly one half; the token of a closed gripper stands for 0, hence for +1 in the environment."""
    bins = ActionTokens(SECTION, 256)
    grippers = bins.decode(torch.arange(256)[:, None].expand(-1, 7))[:, 0, -1]
    normal = np.clip(255 - np.arange(256), 0, 254) * 2 / 255 - 254 / 255
    assert np.array_equal(grippers.numpy(), -np.sign(2 * normal - 1))
    assert bins.encode(torch.tensor([[[0.0] * 6 + [1.0]]]))[0, -1] == 128


def test_proprioception_is_clipped() -> None:
    found = ProprioRange(SECTION)(torch.tensor([[-0.5, 0.3, 9.0, -9.0, 0.0, 0.0, 0.0, 0.0]]))
    assert found.shape == (1, P) and found.dtype == torch.float32
    torch.testing.assert_close(found[0, :4], torch.tensor([-1.0, 1.0, 1.0, -1.0]))


def test_pictures_keep_their_pixels_where_nothing_is_to_do() -> None:
    frames_BHWC = torch.randint(256, (2, 42, 42, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bytes_BCSS = resize(frames_BHWC, 42, 1.0)
    assert torch.equal(bytes_BCSS.byte().permute(0, 2, 3, 1), frames_BHWC)
    normal_BCSS = normalise(bytes_BCSS, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    torch.testing.assert_close(normal_BCSS[1, 2, 3, 4], (frames_BHWC[1, 3, 4, 2] / 255 - 0.3) / 0.2)


def test_resizing_gives_bytes() -> None:
    frames_BHWC = torch.randint(256, (1, 64, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bytes_BCSS = resize(frames_BHWC, 42, 1.0)
    assert bytes_BCSS.shape == (1, 3, 42, 42)
    assert torch.equal(bytes_BCSS, bytes_BCSS.round()) and bytes_BCSS.min() >= 0 and bytes_BCSS.max() <= 255


def test_the_crop_is_centred_and_of_that_area() -> None:
    """On a ramp, bilinear samples are exact: the box spans sqrt(area) of the distance between outermost pixels."""
    ramp = torch.arange(101).clamp(max=100).byte()
    frames_BHWC = ramp[None, None, :, None].expand(1, 101, 101, 3) * 2
    bytes_BCSS = resize(frames_BHWC, 101, 0.81)
    line = bytes_BCSS[0, 0, 50]
    exact = 100 + 200 * 0.9 * (torch.arange(101) / 100 - 0.5)
    assert (line - exact).abs().max() <= 1 and line[0] == 10 and line[-1] == 190
    assert torch.equal(bytes_BCSS[0, 1], bytes_BCSS[0, 0]) and (bytes_BCSS[0, 0] == line).all()


def test_prompts_end_in_a_lone_space_and_are_padded_before() -> None:
    made = tokenizer()
    prompts = Prompts(read_tokenizer(made.to_str(), "tokenizer.json", 32000))
    rows_BL = prompts(["Open the Drawer", "go"])
    assert (rows_BL[:, -1] == 29871).all()
    first, second = rows_BL.tolist()
    assert PADDING not in first and second[0] == PADDING
    expected = made.encode("In: What action should the robot take to go?\nOut: ").ids[1:]
    assert [number for number in second if number != PADDING] == expected
    lower = prompts(["open the drawer"])
    assert torch.equal(lower[0], rows_BL[0])


def test_the_stand_in_tokenizer_reads_any_text() -> None:
    prompts = Prompts(read_tokenizer(byte_tokenizer(), "tokenizer.json", 32000))
    ids_BL = prompts(["Öffne die Schublade, please"])
    assert ids_BL[0, -1] == 29871 and ids_BL.min() > 2
