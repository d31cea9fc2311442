import json

import pytest
import torch

from wovr.core.checkpoint import load_tensors
from wovr.core.errors import UserError
from wovr.stages import pipeline, rl

ARTIFACTS = (
    "sft/policy.safetensors",
    "codec/codec.safetensors",
    "world_model/codec.safetensors",
    "world_model/dit.safetensors",
    "reward/classifier.safetensors",
    "keyframes/bank.safetensors",
    "rl/policy.safetensors",
    "refine/round_1/world_model/dit.safetensors",
    "refine/round_1/world_model/codec.safetensors",
    "refine/round_1/rl/policy.safetensors",
    "action_following/summary.json",
)


def run(experiment, path, stages=tuple(pipeline.STAGES)):
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        for name in stages:
            pipeline.run_stage(place, name)


def assert_equal(a, b, artifact, **tolerance):
    ours, theirs = load_tensors(a / artifact)[0], load_tensors(b / artifact)[0]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run that the tests look at."""
    from tests.stages.conftest import CONFIG, TOY
    from wovr.core.config import load_config
    from wovr.stages.experiment import Experiment

    path = tmp_path_factory.mktemp("runs") / "whole"
    run(load_config(Experiment, CONFIG, TOY), path)
    return path


def test_every_stage_leaves_its_artifact(whole):
    assert [artifact for artifact in ARTIFACTS if not (whole / artifact).is_file()] == []
    assert not list(whole.rglob("*.state")), "training states outlive their stage"
    assert not list(whole.rglob("*.tmp"))


def test_only_the_decoder_learns_from_imagined_latents(whole):
    before = load_tensors(whole / "codec/codec.safetensors")[0]
    for folder in (whole, whole / "refine/round_1"):
        after = load_tensors(folder / "world_model/codec.safetensors")[0]
        changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == {"group_decoder", "frame_decoder"}
        before = after


def test_rl_uses_no_true_rollout(whole):
    lines = [json.loads(line) for line in (whole / "ledger.jsonl").read_text().splitlines()]
    assert {line["purpose"] for line in lines} == {"demonstrations", "collect", "refine-1", "evaluation"}
    assert sum(line["episodes"] for line in lines if line["purpose"] == "collect") == 16


def test_report_summary(whole):
    summary = json.loads((whole / "report" / "summary.json").read_text())
    assert set(summary["success"]) == {"base", "imagination", "pace"}
    for rate in summary["success"].values():
        assert rate["n"] == 4
        assert 0 <= rate["ci95"][0] <= rate["rate"] <= rate["ci95"][1] <= 1
    assert summary["ledger"]["collect"]["episodes"] == 16
    assert summary["seconds"]["total"] > 0


def test_report_is_a_page_of_modest_size(whole, page):
    file = whole / "report" / "report.html"
    assert file.stat().st_size < 15e6
    page.goto(file.as_uri())
    page.wait_for_selector("#player[data-replay='0']")
    assert page.locator(".missing").count() == 0
    before = page.inner_text("[data-where]")
    page.locator("#player input[type=range]").fill("3")
    assert page.inner_text("[data-where]") == f"step 3 of {before.split()[-1]}" != before


def test_same_seed_same_run_wherever_frames_lie(whole, toy, tmp_path):
    run(
        toy("frame_memory=0"),
        tmp_path / "again",
        ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes", "rl"),
    )
    for artifact in ARTIFACTS[:6]:
        assert_equal(whole, tmp_path / "again", artifact)


def test_interrupted_rl_goes_on_where_it_stopped(whole, toy, tmp_path, monkeypatch):
    path, update = tmp_path / "run", rl.update_policy
    run(toy(), path, ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes"))

    def interrupted(*args, number, **kwargs):
        if number == 2:
            raise KeyboardInterrupt
        return update(*args, number=number, **kwargs)

    monkeypatch.setattr(rl, "update_policy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(toy(), path, ("rl",))
    numbers = []
    monkeypatch.setattr(
        rl, "update_policy", lambda *a, number, **k: numbers.append(number) or update(*a, number=number, **k)
    )
    run(toy(), path, ("rl",))
    assert numbers == [2, 3]
    assert_equal(whole, path, "rl/policy.safetensors")


def test_a_complete_stage_is_skipped(whole, toy, monkeypatch):
    before = {artifact: (whole / artifact).stat().st_mtime_ns for artifact in ARTIFACTS}
    run(toy(), whole, ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes", "rl", "refine"))
    assert before == {artifact: (whole / artifact).stat().st_mtime_ns for artifact in ARTIFACTS}


def test_micro_batches_do_not_change_training(toy, tmp_path):
    stages = ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes", "rl")
    fp32 = ("sft.train.precision=fp32", "codec.train.precision=fp32", "reward.train.precision=fp32")
    whole_batch = toy(*fp32, "world_model.train={steps: 2, batch_size: 8, precision: fp32}", "rl.updates=1")
    halves = toy(
        *fp32,
        "world_model.train={steps: 2, batch_size: 8, accumulate: 2, precision: fp32}",
        "rl.updates=1",
        "rl.update.accumulate=2",
    )
    run(whole_batch, tmp_path / "8", stages)
    run(halves, tmp_path / "4+4", stages)
    assert_equal(tmp_path / "8", tmp_path / "4+4", "world_model/dit.safetensors", rtol=1e-4, atol=1e-5)


def test_compiled_and_checkpointed_blocks_train_alike(toy, tmp_path, monkeypatch):
    stages = ("sft", "collect", "codec", "reward", "world_model")
    train = ("world_model.own_memory=null", "world_model.train={steps: 2, batch_size: 4, precision: fp32}")
    compiled, compile_block = [], torch.nn.Module.compile

    def traced(block, **options):  # no code is generated, which would take half a minute and a C++ compiler
        compiled.append(block)
        compile_block(block, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    run(toy(*train), tmp_path / "plain", stages)
    assert not compiled
    run(toy(*train, "world_model.compile=true", "world_model.checkpointing=full"), tmp_path / "other", stages)
    assert len(compiled) == 1
    assert_equal(tmp_path / "plain", tmp_path / "other", "world_model/dit.safetensors", rtol=1e-4, atol=1e-5)


def test_another_config_is_refused(whole, toy):
    with pytest.raises(UserError, match=r"rl\.updates.*expected 4.*found 5"):
        run(toy("rl.updates=5"), whole, ())


def test_a_stage_names_what_must_run_first(toy, tmp_path):
    with pytest.raises(UserError, match="wovr sft CONFIG"):
        run(toy(), tmp_path / "new", ("collect",))


def test_damaged_episodes_are_named(whole, toy, tmp_path):
    run(toy(), tmp_path / "run", ("sft", "collect"))
    shard = sorted((tmp_path / "run" / "episodes").glob("shard_*.hdf5"))[-1]
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=shard.name):
        run(toy(), tmp_path / "run", ("codec",))


def test_too_few_episodes_to_hold_one_back_are_refused(toy, tmp_path):
    few = toy("collect.episodes=3")
    run(few, tmp_path / "run", ("sft", "collect"))
    with pytest.raises(
        UserError, match=r"expected enough episodes to hold one back at collect\.held_out=0\.2, found 3"
    ):
        run(few, tmp_path / "run", ("codec",))


def test_episodes_of_another_size_are_refused(toy, tmp_path):
    run(toy(), tmp_path / "run", ("sft", "collect"))
    with pipeline.open_workplace(toy("simulator.image_size=128"), tmp_path / "other", plain=True) as place:
        (tmp_path / "run" / "episodes").rename(place.run.folder("episodes"))
        with pytest.raises(UserError, match="64"):
            place.training_data()
