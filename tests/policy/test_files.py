"""Both kinds of policy in files and by their config."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.policy.openvla_oft.reference import CONFIG, TEXT, P, observations, write
from wovr.core.checkpoint import load_tensors, read_header, save_model, save_tensors
from wovr.core.errors import UserError
from wovr.core.seed import seed_everything
from wovr.policy.files import PolicyConfig, check_policy, load_policy, make_policy, ready_to_train, save_policy
from wovr.policy.openvla_oft.config import LoRASettings, OpenVLAOFTConfig
from wovr.policy.openvla_oft.lora import has_adapters
from wovr.policy.openvla_oft.model import OpenVLAOFT
from wovr.policy.small import SmallVLA, SmallVLAConfig


def test_a_small_policy_comes_back(tmp_path: Path) -> None:
    config = SmallVLAConfig(chunk_length=2, trunk_width=32, channels=8)
    policy = make_policy(config)
    save_policy(tmp_path / "policy.safetensors", policy)
    again = load_policy(tmp_path / "policy.safetensors")
    assert isinstance(again, SmallVLA) and again.config == config and not again.training
    for name, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert (policy.views, policy.proprio_dim) == (1, 0)


def test_a_file_from_before_there_were_kinds_is_a_small_policy(tmp_path: Path) -> None:
    policy = SmallVLA(SmallVLAConfig())
    save_model(tmp_path / "new.safetensors", policy, policy.config)
    tensors, header = load_tensors(tmp_path / "new.safetensors")
    raw = json.loads(header["config"])
    assert raw.pop("kind") == "small"
    save_tensors(tmp_path / "old.safetensors", tensors, config=json.dumps(raw))
    assert isinstance(load_policy(tmp_path / "old.safetensors"), SmallVLA)


def test_the_small_policy_may_be_told_more_than_it_looks_at() -> None:
    seed_everything(0)
    policy = SmallVLA(SmallVLAConfig(chunk_length=2))
    seen = observations(3)
    frames = {"frames_BHWC": seen["frames_BHWC"]}
    more = policy.act(**seen, instructions=TEXT, temperature=1.0, uniforms_BK=None)
    less = policy.act(**frames, instructions=TEXT, temperature=1.0, uniforms_BK=None)
    assert torch.equal(more.tokens_BK, less.tokens_BK)
    assert torch.equal(policy.encode_actions(torch.from_numpy(more.actions_BHA)), more.tokens_BK)
    numbers_BL = policy.encode_instructions(TEXT)
    frames_BHWC = torch.from_numpy(seen["frames_BHWC"])
    assert torch.equal(policy(frames_BHWC, numbers_BL), policy(frames_BHWC, TEXT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_openvla_oft_is_one_file(tmp_path: Path, dtype: torch.dtype) -> None:
    config = CONFIG.model_copy(update={"pretrained": write(tmp_path / "published", proprio=True), "proprio": P})
    policy = make_policy(config, dtype).eval()
    path = tmp_path / "policy.safetensors"
    save_policy(path, policy)
    assert str(tmp_path) not in str(read_header(path))
    (tmp_path / "published").rename(tmp_path / "gone")
    again = load_policy(path)
    assert isinstance(again, OpenVLAOFT) and again.config == config.model_copy(update={"pretrained": None})
    for name, value in policy.state_dict().items():
        found = again.state_dict()[name]
        assert found.dtype == dtype and torch.equal(found, value)
    seen = observations(len(TEXT))
    seen = {name: seen[name] for name in ("frames_BHWC", "proprio_BP")}
    batches = [one.act(**seen, instructions=TEXT, temperature=1.0, uniforms_BK=None) for one in (policy, again)]
    assert torch.equal(batches[0].tokens_BK, batches[1].tokens_BK)
    assert (batches[0].actions_BHA == batches[1].actions_BHA).all()
    frozen = [{name for name, value in one.named_parameters() if not value.requires_grad} for one in (policy, again)]
    assert frozen[0] == frozen[1] != set()


def test_adapters_are_merged_in_a_file_and_new_ones_are_added_after_it(tmp_path: Path) -> None:
    seed_everything(0)
    policy = make_policy(CONFIG.model_copy(update={"lora": LoRASettings(rank=2)}))
    assert has_adapters(policy)
    for name, value in policy.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.1)
    frames_BHWC = torch.from_numpy(observations(3)["frames_BHWC"])
    expected = policy(frames_BHWC, TEXT)
    save_policy(tmp_path / "policy.safetensors", policy)
    again = load_policy(tmp_path / "policy.safetensors")
    assert not has_adapters(again)
    torch.testing.assert_close(again(frames_BHWC, TEXT), expected, atol=1e-5, rtol=0)
    assert has_adapters(ready_to_train(again)) and has_adapters(ready_to_train(again))
    torch.testing.assert_close(again(frames_BHWC, TEXT), expected, atol=1e-5, rtol=0)
    small = SmallVLA(SmallVLAConfig())
    assert ready_to_train(small) is small


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    def refused(expected: str) -> None:
        with pytest.raises(UserError, match=expected) as caught:
            load_policy(tmp_path / "policy.safetensors")
        assert "\n" not in str(caught.value)

    refused("expected a safetensors file, found none")
    save_tensors(tmp_path / "policy.safetensors", {"x": torch.zeros(1)})
    refused("expected a policy saved by wovr, found no 'config' in its header")
    save_tensors(tmp_path / "policy.safetensors", {"x": torch.zeros(1)}, config='{"kind": "huge"}')
    refused("expected a policy of kind small or openvla_oft, found 'huge'")
    config = CONFIG.model_dump_json()
    save_tensors(tmp_path / "policy.safetensors", {"x": torch.zeros(1)}, config=config, files="{}")
    refused("policy.safetensors: tokenizer.json: expected this file of an OpenVLA-OFT checkpoint, found none")
    files = json.dumps(OpenVLAOFT(CONFIG).assets.files)
    save_tensors(tmp_path / "policy.safetensors", {"x": torch.zeros(1)}, config=config, files=files)
    refused(r"expected \d+ tensors that fit this policy, found \d+ missing")


def test_a_section_says_its_kind() -> None:
    adapter = TypeAdapter(PolicyConfig)
    assert adapter.validate_python({"chunk_length": 4}) == SmallVLAConfig(chunk_length=4)
    assert adapter.validate_python({"kind": "openvla_oft", "views": 2}) == OpenVLAOFTConfig(views=2)
    with pytest.raises(ValidationError, match="expected kind small or openvla_oft"):
        adapter.validate_python({"kind": "huge"})


def test_policies_are_checked_before_they_are_made(tmp_path: Path) -> None:
    check_policy(SmallVLAConfig())
    check_policy(CONFIG)
    with pytest.raises(UserError, match="expected a folder with a published OpenVLA-OFT checkpoint"):
        check_policy(CONFIG.model_copy(update={"pretrained": tmp_path / "none"}))


def test_a_small_policy_needs_no_transformers(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy.safetensors", SmallVLA(SmallVLAConfig()))
    code = (
        "import sys; from pathlib import Path; from wovr.policy.files import load_policy;"
        f"load_policy(Path({str(tmp_path / 'policy.safetensors')!r}));"
        "print([name for name in ('transformers', 'peft', 'tokenizers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
