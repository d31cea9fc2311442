"""`wovr play` from outside: what cannot be played ends in one line."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from wovr_cli.main import app

from tests.imagine.test_load import write_run
from wovr.core.run import RunFolder
from wovr.stages.experiment import Experiment


def play(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["play", *map(str, arguments)])


def one_line(result: Result) -> str:
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that is a run, and holds nothing yet."""
    config = Experiment.model_validate({"codec": {"train": {"steps": 1}}})
    RunFolder.open(tmp_path / "run", config.model_dump(mode="json")).close()
    return tmp_path / "run"


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert one_line(play(tmp_path, "--port", 0)) == (
        f"wovr: {tmp_path}: expected a run folder, found no manifest.json in it"
    )
    assert "expected a run folder" in one_line(play(tmp_path / "gone", "--port", 0))


def test_a_run_without_a_world_model(run: Path) -> None:
    assert "run `wovr train-wm CONFIG` first" in one_line(play(run, "--port", 0))


def test_a_run_that_never_had_one(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("simulator: false", "simulator: true"))
    assert "expected a run with a world model, found key 'rl.simulator': true" in one_line(play(run, "--port", 0))


def test_damage_is_named(run: Path) -> None:
    write_run(run)
    (run / "keyframes/bank.safetensors").write_bytes(b"no bank")
    assert "bank.safetensors" in one_line(play(run, "--port", 0))
    (run / "config.yaml").write_text("seed: soon\n")
    assert "config.yaml: key" in one_line(play(run, "--port", 0))
    (run / "manifest.json").write_text(json.dumps({"format": 0}))
    assert "key 'format'" in one_line(play(run, "--port", 0))


def test_a_port_in_use(run: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert one_line(play(run, "--port", port)) == (
            f"wovr: --port: expected a free port, found {port} in use; choose another, 0 for any"
        )


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a..b"])
def test_an_address_that_is_not_this_machines(run: Path, host: str) -> None:
    assert "--host" in one_line(play(run, "--host", host, "--port", 0))


def test_the_web_is_loaded_by_nothing_else() -> None:
    code = (
        "import sys\nfrom wovr_cli.main import main\nsys.argv = ['wovr', 'play', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
