"""The references of configuration and command line are what the code says now."""

import importlib.util
from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import Field
from wovr_cli.main import app

from wovr.core.config import Config
from wovr.core.train import TrainConfig
from wovr.stages.experiment import Experiment

DOCS = Path(__file__).parents[2] / "docs"
MEND = "stale: run `make docs`"


def load_generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_page_is_what_the_code_says(page):
    assert (DOCS / page).read_text() == generate.PAGES[page](), MEND


def rows(text: str) -> dict[str, list[str]]:
    """Cells by the first one, of all tables."""
    lines = [line.replace("\\|", "/").strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


def test_every_key_of_the_demo_is_on_the_page():
    """In the section of its dotted key, or of the model that several share."""
    known = rows(generate.configuration())

    def walk(section: Config, prefix: str) -> None:
        for name in type(section).model_fields:
            value = getattr(section, name)
            shared = isinstance(section, TrainConfig)
            assert (name if shared else prefix + name) in known
            if isinstance(value, Config):
                walk(value, f"{prefix}{name}.")

    walk(Experiment(codec={"train": {"steps": 1}}, near_success={}), "")
    assert known["rl.groups"] == ["int, ≥ 1", "`24`", "Start states per update; trajectories are groups x group_size."]
    assert known["rl.update.optim.lr"][1] == "`0.0001`", "as the section has it, not as its class"
    assert known["batch_size"][1] == "`32`"
    assert known["rl.update.grpo.normalize"][0] == "`mean` or `std`"


def test_another_default_or_meaning_makes_the_page_stale(monkeypatch):
    before = generate.configuration()
    field = Experiment.model_fields["frame_memory"]
    monkeypatch.setattr(field, "default", 5.0)
    assert generate.configuration() != before
    monkeypatch.undo()
    monkeypatch.setattr(field, "description", "Other words.")
    assert generate.configuration() != before


def test_a_key_without_a_docstring_is_refused(monkeypatch):
    monkeypatch.setattr(Experiment.model_fields["seed"], "description", None)
    with pytest.raises(AssertionError, match=r"Experiment\.seed: expected a docstring"):
        generate.configuration()


def test_types_are_told_in_words():

    class Whole(Config):
        sizes: tuple[int, ...] = Field((), min_length=0)
        """Some."""
        pair: tuple[float, float] = (0.0, 1.0)
        """Two."""
        mode: Literal["a", "b", "c"] | None = None
        """One of three."""

    reference = generate.Reference()
    said = [reference._type(field) for field in Whole.model_fields.values()]
    assert said == ["list of int, length ≥ 0", "list of 2 float", "`a`, `b` or `c` or `null`"]
    assert generate._first_sentence("Eq. 10 and 11 of it. More.") == "Eq. 10 and 11 of it."


def test_every_command_and_option_is_on_the_page():
    page = generate.command_line()
    known = ", ".join(rows(page))
    for name, command in typer.main.get_command(app).commands.items():
        assert f"\n## wovr {name}\n" in page
        for option in command.params:
            assert (option.opts[0] if option.param_type_name == "option" else option.metavar) in known


def test_values_of_options_are_told():
    assert [generate._value(one) for one in (int, list[int], Path, Literal["a", "b"])] == ["INT", "INT", "PATH", "a|b"]


def test_what_is_to_be_kept_as_it_is_becomes_code():
    assert generate._help("One\nline.\n\n\b\n  a   b\n  c\n\nMore.") == "One line.\n\n```\na   b\nc\n```\n\nMore."
