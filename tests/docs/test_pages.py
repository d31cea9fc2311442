"""README, quickstart and guide: their commands exist, their code runs."""

import re
import shlex

import pytest
import typer
import yaml
from typer.testing import CliRunner
from wovr_cli.main import app

from tests.docs.blocks import ROOT, blocks, run_line, save
from wovr.core.config import load_config
from wovr.stages.experiment import Experiment
from wovr.stages.pipeline import load_experiment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ("cli.md", "configuration.md")
COMMANDS = typer.main.get_command(app).commands


def commands(page):
    """Lines of bash blocks, continued ones whole."""
    for block in blocks(page):
        if block.language == "bash":
            yield from block.code.replace("\\\n", " ").splitlines()


LINES = [
    (page.name, line)
    for page in PAGES
    for line in commands(page)
    if line.startswith("wovr ") and page.name not in GENERATED
]


def test_there_are_commands():
    assert len(LINES) > 40
    assert {name for name, _ in LINES} >= {"quickstart.md", "guide.md", "reproduce.md", "extend.md", "plan.md"}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_commands_and_options_exist(page, line):
    _, name, *arguments = shlex.split(line, comments=True)
    command = COMMANDS[name]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert [one for one in arguments if one.startswith("--") and one not in known] == []


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in LINES if "configs/tabletop.yaml" in line])
def test_overrides_fit_the_experiment(page, line):
    """Keys and values, as they are typed."""
    _, _, *arguments = shlex.split(line, comments=True)
    overrides = [one for one in arguments if re.match(r"[a-z_.]+=", one)]
    load_experiment(ROOT / "configs/tabletop.yaml", overrides)


def test_configs_that_pages_name_exist():
    named = {name for page in PAGES for name in re.findall(r"\bconfigs/[\w{}/]+\.(?:yaml|json)", page.read_text())}
    assert [name for name in sorted(named) if "{" not in name and not (ROOT / name).is_file()] == []
    assert len(named) > 5


def test_modules_that_the_method_names_exist():
    """`dit/model.py` and such, of docs/method.md and docs/extend.md."""
    for page in ("method.md", "extend.md"):
        named = set(re.findall(r"`((?:\w+/)+\w+\.py|(?:\w+/)+)`", (ROOT / "docs" / page).read_text()))
        assert named
        assert [name for name in sorted(named) if not any((ROOT / f / name).exists() for f in ("src/wovr", "."))] == []


def test_the_policy_of_the_quickstart_acts(reader, capsys):
    found = blocks(ROOT / "docs/quickstart.md")
    save(found, reader)
    left = run_line("python imagine.py")
    assert capsys.readouterr().out.count("success probability at most") == 6
    assert left["acted"].actions_BHA.shape == (8, 8, 3)
    assert left["info"]["success_probability"].shape == (8, 8)


def test_the_file_of_the_quickstart_builds_on_another(reader):
    save(blocks(ROOT / "docs/quickstart.md"), reader)
    experiment = load_config(Experiment, reader / "mine.yaml")
    assert experiment.rl.updates == 90 != load_experiment(ROOT / "configs/tabletop.yaml").rl.updates
    assert yaml.safe_load((reader / "mine.yaml").read_text())["extends"] == "configs/tabletop.yaml"
    planned = CliRunner().invoke(app, ["plan", "mine.yaml", "--gpus", "0"])
    assert planned.exit_code in (0, 1) and "rl" in planned.output, "1 where this machine's memory is too small"


def test_the_run_folder_is_as_the_quickstart_lists_it(finished):
    """What a finished run has; stages that the toy run leaves out are known by what they write."""
    from wovr.stages.pipeline import STAGES

    (listing,) = re.findall(r"^```\nruns/demo/\n(.*?)^```$", (ROOT / "docs/quickstart.md").read_text(), re.M | re.S)
    listed = {line.split()[0].split("/")[0] for line in listing.splitlines()}
    written = {part.split("/")[0] for stage in STAGES.values() for part in stage.writes.split(", ")}
    made = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert made | written <= listed
    assert listed <= made | written | {"eval", "latents"}
