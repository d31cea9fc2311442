"""The command line from outside: help, exit codes, one line per error."""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result
from wovr_cli.main import app

from wovr.core.checkpoint import write_json
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.dit.weights import load_wan, save_wan
from wovr.flow.schedule import FlowConfig
from wovr.imagine.load import DIT, save_dit
from wovr.metrics.reward_quality import measure_reward
from wovr.reward.joint import RewardHead, RewardHeadConfig
from wovr.stages.evaluate import TRUE
from wovr.stages.pipeline import STAGES

COMMANDS_WITH_CONFIG = ["sft", "collect", "train-wm", "rl", "refine", "eval", "report", "run"]
SMALL = "world_model.dit={width: 32, depth: 1, heads: 2, ffn_width: 64, channels: 12}"
"""With the channels of the default codec."""


def wovr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line(result: Result) -> str:
    assert result.exit_code == 2 and result.stdout == "", result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("wovr: "), result.stderr
    return lines[0]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\ncodec: {train: {steps: 1}}\n")
    return path


@pytest.fixture
def stages_run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Stages that do nothing but note (name, seed, updates of their experiment)."""
    ran: list[tuple[str, int, int]] = []

    def run(place, name):
        ran.append((name, place.experiment.seed, place.experiment.rl.updates))
        rate = {"rate": 0.5, "successes": 1, "n": 2, "ci95": [0.1, 0.9]}
        paired = {"difference": 0.25, "ci95": [0.1, 0.4]}
        return {"world": TRUE, "base": rate, "pace": rate, "pace_minus_base": paired} if name == "eval" else {}

    for name, stage in STAGES.items():
        monkeypatch.setattr(importlib.import_module(stage.module), "run", functools.partial(run, name=name))
    return ran


SLOW = ("torch", "numpy", "pydantic", "yaml", "gymnasium", "matplotlib", "PIL", "h5py", "rich", "jinja2", "fastapi")
"""What takes long to load, and help does not need."""


def test_help_shows_every_command_and_stage_and_loads_nothing_slow() -> None:
    script = (
        "import sys\nfrom wovr_cli.main import main\nsys.argv = ['wovr', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print(*(name for name in {SLOW} if name in sys.modules), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stderr == "\n", f"help loads {found.stderr}"
    assert found.returncode == 0, found.stderr
    for command in [*COMMANDS_WITH_CONFIG, "demo", "pretrain", "plan", "export"]:
        assert re.search(rf"^  {command} ", found.stdout, re.MULTILINE), command
    for name, stage in STAGES.items():
        assert re.search(rf"^    {name} .*{stage.writes}$", found.stdout, re.MULTILINE), name
    lines = found.stdout.splitlines()[1:]
    assert all(len(line) <= 79 and "..." not in line for line in lines), "cut or wrapped in a terminal"


@pytest.mark.parametrize("command", COMMANDS_WITH_CONFIG)
def test_commands_share_their_flags(command: str) -> None:
    found = wovr(command, "--help")
    assert found.exit_code == 0
    shared = ("sft", "train-wm", "rl", "refine", "run")
    own = {"eval": {"--what"}} | {name: {"--nproc", "--zero", "--offload", "--hostfile"} for name in shared}
    own = own.get(command, set())
    assert set(re.findall(r"--[a-z]+", found.stdout)) == {"--run", "--plain", "--wandb", "--help"} | own


def test_every_stage_belongs_to_a_command() -> None:
    assert {stage.command for stage in STAGES.values()} | {"run"} == set(COMMANDS_WITH_CONFIG)


def test_version() -> None:
    assert re.fullmatch(r"wovr \d+\.\d+\.\d+\n", wovr("--version").stdout)


def completed(line: str, folder: Path) -> list[str]:
    """What bash offers at the end of a command line, by the script that `--show-completion` prints."""
    words = line.split(" ")
    wovr = f'#!/bin/sh\nexec {sys.executable} -m wovr_cli "$@"\n'
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "wovr").write_text(wovr)
    (folder / "bin" / "wovr").chmod(0o755)
    script = (
        'eval "$(wovr --show-completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        'complete -p wovr >/dev/null && _wovr_completion wovr; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # the shell is then named
    }
    command = ["bash", "--norc", "-c", script, "bash", *words]
    found = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0 and not found.stderr, found.stderr
    return found.stdout.split()


def test_a_shell_completes_commands_options_configs_and_run_folders(tmp_path: Path) -> None:
    for path in ("configs/tabletop.yaml", "mine.yaml", "notes.txt", "runs/demo/manifest.json", "runs/else/notes.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert completed("wovr tr", tmp_path) == ["train-wm"]
    assert completed("wovr rl --pl", tmp_path) == ["--plain"]
    assert completed("wovr run ", tmp_path) == ["configs/tabletop.yaml", "mine.yaml"]
    assert completed("wovr run configs/t", tmp_path) == ["configs/tabletop.yaml"]
    assert completed("wovr rl mine.yaml --run ", tmp_path) == ["runs/demo"]
    assert completed("wovr eval mine.yaml --what w", tmp_path) == ["world-model"]


def test_unknown_key_is_one_line(config: Path) -> None:
    assert one_line(wovr("run", config, "rl.upates=3")) == (
        f"wovr: {config}: unknown key 'rl.upates'; did you mean 'updates'?"
    )
    assert not (config.parent / "runs").exists()


@pytest.mark.parametrize("command", COMMANDS_WITH_CONFIG)
def test_missing_config_is_one_line(command: str, tmp_path: Path) -> None:
    assert "none.yaml: expected a YAML config file, found none" in one_line(wovr(command, tmp_path / "none.yaml"))


def test_missing_pretrained_file_is_found_before_anything_is_written(config: Path) -> None:
    assert "gone.safetensors" in one_line(wovr("run", config, "codec.pretrained=gone.safetensors"))
    assert not (config.parent / "runs").exists()


def test_misfits_are_found_before_anything_is_written(config: Path, tmp_path: Path) -> None:
    sizes = {"depth": 1, "heads": 2, "ffn_width": 8, "channels": 4, "action_positions": False, "action_sums": False}
    network = ActionDiT(DiTConfig(width=12, **sizes), layout(ContextConfig(), 8))
    save_wan(tmp_path / "wan.safetensors", network)
    wider = f"world_model.dit={ {'width': 24, **sizes} }"
    pretrained = f"world_model.pretrained={tmp_path / 'wan.safetensors'}"
    said = one_line(wovr("train-wm", config, pretrained, wider))
    assert "44 misshapen: patch_embedding.weight [12, 4, 1, 2, 2] instead of [24, 4, 1, 2, 2]" in said
    wan = ("codec.wan={}", "codec.pretrained=x.pth", "codec.train=null", "decoder.train={steps: 1}")
    assert "key 'decoder': expected train=null with `codec.wan`" in one_line(wovr("train-wm", config, *wan))
    assert not (config.parent / "runs").exists()


def test_usage_errors_exit_with_2(config: Path) -> None:
    for arguments in (["run"], ["rl", config, "--updates", "3"], ["dance"]):
        found = wovr(*arguments)
        assert found.exit_code == 2 and "Error" in found.stderr and "Traceback" not in found.output


def test_overrides_and_run_folder(config: Path, stages_run: list) -> None:
    assert wovr("sft", config, "rl.updates=7", "--plain").exit_code == 0
    assert wovr("sft", config, "seed=9", "--run", "elsewhere").exit_code == 0
    assert stages_run == [("sft", 3, 7), ("sft", 9, 40)]
    assert (config.parent / "runs/mine/manifest.json").exists() and (config.parent / "elsewhere/config.yaml").exists()


def test_another_config_in_the_same_folder_is_refused(config: Path, stages_run: list) -> None:
    wovr("sft", config)
    line = one_line(wovr("sft", config, "rl.updates=7"))
    assert "key 'rl.updates': expected 40" in line and "found 7" in line
    assert len(stages_run) == 1


def test_train_wm_and_rl_run_their_stages_in_order(config: Path, stages_run: list) -> None:
    for command in ("sft", "collect", "train-wm", "rl"):
        assert wovr(command, config).exit_code == 0
    assert [name for name, *_ in stages_run] == [
        "sft",
        "collect",
        "codec",
        "reward",
        "world_model",
        "decoder",
        "keyframes",
        "rl",
    ]


def test_eval_measures_what_it_is_asked_for(config: Path, stages_run: list) -> None:
    for command in ("sft", "collect", "train-wm"):
        assert wovr(command, config).exit_code == 0
    del stages_run[:]
    for what, stages in [
        (["world-model"], ["world_model_eval"]),
        (["success", "hallucination"], ["eval", "hallucination", "closed_loop"]),
        (["actions"], ["action_following"]),
        (["reward"], ["compare_reward"]),
        ([], ["world_model_eval", "action_following", "compare_reward"]),  # after newer measures they are repeated
    ]:
        options = [option for one in what for option in ("--what", one)]
        assert wovr("eval", config, *options).exit_code == 0
        assert [name for name, *_ in stages_run] == stages
        del stages_run[:]


def test_an_unknown_measure_is_one_line(config: Path, stages_run: list) -> None:
    expected = "wovr: --what: expected success, hallucination, world-model, actions, reward, found 'fvd'"
    assert one_line(wovr("eval", config, "--what", "success", "--what", "fvd")) == expected
    assert not (config.parent / "runs").exists()


def test_the_world_models_table_is_printed(config: Path, stages_run: list, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"n": 9, "psnr": {"mean": 21.234, "ci95": [20, 22]}, "ssim": {"mean": 0.5, "ci95": None}}
    measured = {
        "settings": {"metrics": [], "batch_size": 4},
        "left_out": [512],
        "hardware": "an abacus",
        "precision": "fp32",
        "worlds": {"base": {"fps": 7.0, "episodes": {"collect": {"horizons": {"16": row}}}}},
    }

    def run(place):
        write_json(place.run.path / "world_model_eval/summary.json", measured)
        return {}

    monkeypatch.setattr("wovr.stages.world_model_eval.run", run)
    for command in ("sft", "collect", "train-wm"):
        wovr(command, config)
    found = wovr("eval", config, "--what", "world-model")
    assert found.exit_code == 0, found.output
    assert re.search(r"base +collect +16 +9 +7\.0 +21\.23 +0\.500", found.stdout), found.stdout
    assert "an abacus" in found.stdout and "Left out, no held-out episode is so long: 512." in found.stdout
    assert "PSNR" not in wovr("eval", config, "--what", "hallucination").stdout


def test_whether_actions_are_followed_is_printed(
    config: Path, stages_run: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(mean: float, successes: int) -> dict:
        return {"difference": {"mean": mean, "ci95": [mean, mean]}, "told_apart": {"rate": successes / 20}}

    def found(follows: bool, *changes: dict) -> dict:
        named = dict(zip(("shuffled", "zero", "negated"), changes, strict=True))
        return {"n": 20, "follows": follows, "error": {"mean": 239.51}, "changes": named}

    measured = {
        "base": {"collect": found(True, change(659.11, 20), change(819.7, 20), change(588.0, 19))},
        "pace": {"collect": found(False, change(0.0, 0), change(0.0, 0), change(-1.25, 9))},
    }

    def run(place):
        write_json(place.run.path / "action_following/summary.json", {"worlds": measured})
        return {}

    monkeypatch.setattr("wovr.stages.action_following.run", run)
    for command in ("sft", "collect", "train-wm"):
        wovr(command, config)
    shown = wovr("eval", config, "--what", "actions")
    assert shown.exit_code == 0, shown.output
    said = r"base +collect +20 +yes +239\.5 +\+659\.1, 100 % +\+819\.7, 100 % +\+588\.0, 95 %"
    assert re.search(said, shown.stdout), shown.stdout
    assert re.search(r"pace +collect +20 +NO .* -1\.2, 45 %", shown.stdout), shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines()[:5]), "a terminal's width"
    assert "follow" not in wovr("eval", config, "--what", "hallucination").stdout


def test_how_good_the_judges_are_is_printed(config: Path, stages_run: list, monkeypatch: pytest.MonkeyPatch) -> None:
    quality = measure_reward([np.array([0.2, 0.9, 0.7], np.float32)], [np.array([False, True, False])], 0.6, 1)
    nothing = measure_reward([np.array([0.2], np.float32)], [np.array([False])], 0.6, 1)
    of = {"classifier": {"true": quality.to_dict()}, "joint": {"imagined": nothing.to_dict()}}

    def run(place):
        write_json(place.run.path / "compare_reward/summary.json", {"base": {"collect": of}})
        return {}

    monkeypatch.setattr("wovr.stages.compare_reward.run", run)
    for command in ("sft", "collect", "train-wm"):
        wovr(command, config)
    shown = wovr("eval", config, "--what", "reward")
    assert shown.exit_code == 0, shown.output
    assert re.search(r"base +collect +classifier +true +1 +50 % +100 % +100 % +0\.180", shown.stdout), shown.stdout
    assert re.search(r"base +collect +joint +imagined +1 +– +– +100 % +0\.040 +0\.200", shown.stdout), shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines()[:5]), "a terminal's width"
    assert "Brier" not in wovr("eval", config, "--what", "hallucination").stdout


def test_missing_metric_weights_are_found_before_anything_is_written(config: Path, tmp_path: Path) -> None:
    line = one_line(wovr("run", config, "world_model_eval.metrics=[lpips]", f"world_model_eval.weights={tmp_path}"))
    assert "alexnet-owt-7be5be79.pth" in line and str(tmp_path) in line
    assert not (config.parent / "runs").exists()
    assert "world_model_eval.metrics" in one_line(wovr("run", config, "world_model_eval.metrics=[fed]"))


def test_run_ends_with_the_result(config: Path, stages_run: list) -> None:
    found = wovr("run", config)
    assert found.exit_code == 0, found.output
    assert [name for name, *_ in stages_run] == list(STAGES)
    assert "after PACE" in found.stdout and "50.0 %" in found.stdout and "+25.0 points" in found.stdout
    assert "runs/mine/report" in found.stdout


def test_demo_is_the_packaged_config(config: Path, stages_run: list) -> None:
    overrides = ["codec.pretrained=null", "codec.train={steps: 1}", "world_model.pretrained=null", "seed=5"]
    assert wovr("demo", *overrides).exit_code == 0
    assert [(name, seed) for name, seed, _ in stages_run] == [(name, 5) for name in STAGES]
    assert (config.parent / "runs/demo/manifest.json").exists()


def test_interrupt_says_how_to_go_on(config: Path, stages_run: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(place):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["wovr.stages.collect"], "run", interrupted)
        found = wovr("run", config)
    assert found.exit_code == 130
    assert "wovr: interrupted; the same command goes on where it stopped" in found.stderr
    assert "Traceback" not in found.output
    again = wovr("run", config)
    assert again.exit_code == 0 and [name for name, *_ in stages_run] == list(STAGES)


def test_an_internal_error_is_not_hidden(config: Path, stages_run: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place):
        raise AssertionError("invariant")

    monkeypatch.setattr(sys.modules["wovr.stages.sft"], "run", broken)
    assert isinstance(wovr("sft", config).exception, AssertionError)


def test_plan_says_what_a_stage_takes_and_that_it_fits(config: Path) -> None:
    found = wovr("plan", config, SMALL, "--json", "plan.json")
    assert found.exit_code == 0, found.output
    for name in STAGES:
        assert re.search(rf"^ {name} ", found.stdout, re.MULTILINE) or name == "report", name
    assert re.search(r"^Fits: \w+ \(.*\) takes [\d.]+ of 74.5 GB; \d+ GB of host memory.$", found.stdout, re.MULTILINE)
    plan = json.loads((config.parent / "plan.json").read_text())
    assert plan["fits"] and {*plan["stages"]} == {*STAGES} - {"report"}
    assert {path.name for path in config.parent.iterdir()} == {"mine.yaml", "plan.json"}, "nothing is run"


def test_plan_says_what_to_change(config: Path) -> None:
    asked = [config, SMALL, "rl.groups=48", "rl.rollout_batch=384", "--gpu-memory", "2.2"]
    found = wovr("plan", *asked)
    assert found.exit_code == 1
    assert re.search(r"^Does not fit: \w+ \(\w+\) takes [\d.]+ of 0.6 GB", found.stdout, re.MULTILINE), found.stdout
    advice = re.search(r"^Fits with: (.*)$", found.stdout, re.MULTILINE)
    assert advice is not None
    assert wovr("plan", *asked, *advice[1].split()).exit_code == 0


@pytest.mark.parametrize("flags", [("--offload",), ("--gpus", "0", "--zero", "1")])
def test_plan_refuses_flags_that_contradict_each_other(flags: tuple[str, ...], config: Path) -> None:
    assert one_line(wovr("plan", config, *flags)).startswith(
        f"wovr: {flags[-2] if len(flags) > 1 else flags[0]}: expected"
    )


def test_export_writes_what_load_wan_reads(tmp_path: Path) -> None:
    assert one_line(wovr("export", tmp_path, tmp_path / "out.safetensors")).endswith("run `wovr train-wm CONFIG` first")
    window = layout(ContextConfig(), 8)
    dit = ActionDiT(DiTConfig(width=24, depth=1, heads=2, ffn_width=48), window)
    published = dit.state_dict()
    dit.reward_head = RewardHead(RewardHeadConfig(), 24)  # has no place in a published file
    save_dit(tmp_path / DIT, dit, ContextConfig(), FlowConfig())
    found = wovr("export", tmp_path, tmp_path / "out.safetensors")
    assert found.exit_code == 0, found.output
    again = load_wan(tmp_path / "out.safetensors", dit.config, window)
    for name, value in published.items():
        assert torch.equal(again.state_dict()[name], value.bfloat16().float()), name
