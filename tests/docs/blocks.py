"""Code blocks of the documentation, and how they are run: in this process, in a folder that holds a toy run."""

import re
import runpy
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner
from wovr_cli.main import app

from tests.stages.conftest import TOY

ROOT = Path(__file__).parents[2]
OVERRIDES = [override for override in TOY if not override.startswith("simulator.")]
"""Toy sizes for commands that take a CONFIG; what is simulated is the page's own."""
TAKE_NONE = ("plan", "doctor", "convert", "export", "study")


@dataclass(frozen=True)
class Block:
    language: str
    code: str

    @property
    def file(self) -> str | None:
        """The name that its first line gives it."""
        found = re.match(r"# (\w+\.(?:py|yaml))\n", self.code)
        return found.group(1) if found else None


def blocks(page: Path) -> list[Block]:
    """In their order; those of a list or table are none."""
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S)]


def section(page: Path, title: str) -> list[Block]:
    """Blocks below one heading of the second level."""
    parts = re.split(r"^## ", page.read_text(), flags=re.M)
    text = next(part for part in parts if part.startswith(f"{title}\n"))
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)]


def save(found: list[Block], folder: Path) -> None:
    """Write the blocks that name a file."""
    for block in found:
        if block.file:
            (folder / block.file).write_text(block.code)


def run_line(line: str) -> dict[str, Any]:
    """One line of a bash block; of a Python file, what it leaves behind."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "wovr":
        extra = [] if arguments[0] in TAKE_NONE else [*OVERRIDES, "--plain"]
        result = CliRunner().invoke(app, [*arguments, *extra])
        assert result.exit_code == 0, (line, result.output, result.exception)
        return {}
    assert program == "python", line
    if arguments[0] == "-c":
        left: dict[str, Any] = {}
        exec(arguments[1], left)
        return left
    return runpy.run_path(arguments[0], run_name="__main__")
