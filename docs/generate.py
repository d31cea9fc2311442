"""Write docs/configuration.md and docs/cli.md from the code: `make docs`, or `python docs/generate.py`.

Keys, types, defaults and their meaning are the config models' own, commands and options those of the command line; a
test fails where the pages say something else than the code. Nothing here depends on the machine.
"""

from __future__ import annotations

import re
import textwrap
import types
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from wovr_cli.main import EXAMPLES, app

from wovr.core.config import KIND
from wovr.stages.experiment import Experiment
from wovr.stages.pipeline import STAGES
from wovr.stages.pretrain import PretrainConfig
from wovr.stages.study import StudyConfig

MADE = "<!-- `make docs` writes this page from the code -->"
LONGEST = 100
"""Characters of a default; longer ones are summed up."""

CONFIGURATION = f"""{MADE}

# Configuration

An experiment is one YAML file, `configs/tabletop.yaml` for example, and `key=value` on the command line goes over it;
the value is YAML too. Keys below are written as they are there:

```bash
wovr run configs/tabletop.yaml rl.updates=60 "rl.update.grpo={{group_size: 16, normalize: std}}" --run runs/mine
```

A file may build on others with `extends`, and relative paths in it are relative to it
([quickstart](quickstart.md#change-something)). A key that does not exist, or a value that does not fit, is refused
before anything runs. Defaults here are the code's; what a run was made with, defaults included, stands in its
`config.yaml`. Where a default departs from the paper, [method](method.md#departures) says why.

Sections stand in the order in which stages read them. `null` is nothing (None in the descriptions); what may be `null`
or a section is turned on by `{{}}`, which takes the section's defaults.
"""
OTHER_FILES = {
    "configs/pretrain.yaml": (PretrainConfig, "Read by `wovr pretrain`."),
    "configs/study.yaml": (StudyConfig, "Read by `wovr study`; [study](study.md) has what came out."),
}
OPTIONS = ("argument", "meaning", "default")
ENDS = (
    "A command ends with 0; with 1 where a check fails; with 2 where whoever typed it has something to mend, which one "
    "line says; and with 130 when interrupted."
)
STAGES_OF = "What each stage reads of the run folder, and what it adds to it, in the order of `wovr run`:"
SHARED = "Several commands take these. What KEY may be: [configuration](configuration.md)."
COMMON = 2
"""Commands that have an argument in common before it is listed once."""


class Reference:
    """The models of the experiment: each has one place on the page, and other places link to it."""

    def __init__(self) -> None:
        self.uses: Counter[type[BaseModel]] = Counter(model for _, model in _walk(Experiment, ""))
        self.homes = {model: path for path, model in _walk(Experiment, "") if self.uses[model] == 1}
        """Keys of those that have a table of their own there."""
        self.lines = [CONFIGURATION]

    def page(self) -> str:
        """All of it: the experiment, what several of its sections share, and other files."""
        self._heading(2, "The experiment")
        self._table(Experiment, "", None)
        for name, field in Experiment.model_fields.items():
            default = None if field.default is PydanticUndefined else field.default
            self._section(2, name, field, name, default if isinstance(default, BaseModel) else None)
        self._heading(2, "Shared sections")
        for model in [model for model in self.uses if model not in self.homes]:
            self._heading(3, model.__name__)
            keys = ", ".join(f"`{path}`" for path, used in _walk(Experiment, "") if used is model)
            self._text(f"{_paragraph(model.__doc__)} Found in {keys}.")
            self._table(model, "", None)
        for file, (root, said) in OTHER_FILES.items():
            own = {model: path for path, model in _walk(root, "") if model not in self.uses}
            self.uses.update(own.keys())
            self.homes |= own
            self._heading(2, f"`{file}`")
            self._text(f"{_paragraph(root.__doc__)} {said}")
            self._table(root, "", None)
            for model, path in own.items():
                self._model(3, path, model, None)
        return "\n".join(self.lines).strip() + "\n"

    def _section(self, level: int, title: str, field: FieldInfo, path: str, default: BaseModel | None) -> None:
        """A key's models, unless they are shared; one that comes in kinds has one part for each."""
        models = _models(field.annotation)
        if len(models) > 1:
            self._heading(level, title)
            self._text(f"Comes in kinds; `{path}.{KIND}` says which.")
            for model in models:
                kind = model.model_fields[KIND].default
                self._model(level + 1, f"{title}, kind {kind}", model, None, path)
        elif models and models[0] in self.homes:
            self._model(level, title, models[0], default, path)

    def _model(
        self, level: int, title: str, model: type[BaseModel], default: BaseModel | None, path: str | None = None
    ) -> None:
        path = title if path is None else path
        self._heading(level, title)
        self._text(_paragraph(model.__doc__))
        self._table(model, f"{path}.", default)
        for name, field in model.model_fields.items():
            inner = getattr(default, name) if default is not None else field.default
            inside = inner if isinstance(inner, BaseModel) else None
            self._section(3, f"{path}.{name}", field, f"{path}.{name}", inside)

    def _table(self, model: type[BaseModel], prefix: str, default: BaseModel | None) -> None:
        """One row per key."""
        rows = []
        for name, field in model.model_fields.items():
            models = _models(field.annotation)
            said = field.description or next((_first_sentence(one.__doc__) for one in models), "")
            assert said, f"{model.__name__}.{name}: expected a docstring below it, found none"
            shown = self._default(getattr(default, name) if default is not None else field.default, prefix + name)
            rows.append((f"`{prefix}{name}`", self._type(field), shown, _cell(said)))
        self._text(_markdown_table(("key", "type", "default", "meaning"), rows))

    def _default(self, value: Any, path: str) -> str:
        if value is PydanticUndefined:
            return "required"
        if isinstance(value, BaseModel):
            unlike = value.model_dump(mode="json", exclude_unset=True)
            if KIND in type(value).model_fields:
                return f"kind `{getattr(value, KIND)}`"
            if self.homes.get(type(value)) == path or not unlike:
                return "as there"  # its table says what it defaults to
            value = unlike
        shown = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
        if len(shown) > LONGEST and isinstance(value, tuple):
            return f"{len(value)} numbers"
        return f"`{_cell(shown)}`"

    def _type(self, field: FieldInfo) -> str:
        limits = ", ".join(filter(None, map(_limit, field.metadata)))
        found = self._named(field.annotation)
        return _cell(f"{found}, {limits}" if limits else found)

    def _named(self, annotation: Any) -> str:
        """A type in words, sections as links."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._named(arguments[0])
        if origin is Literal:
            return _either([f"`{one}`" for one in arguments])
        if origin in (Union, types.UnionType):
            return _either([self._named(one) for one in arguments])
        if origin is tuple:
            count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
            return f"list of {count}{self._named(arguments[0])}"
        if origin is dict:
            return f"{self._named(arguments[1])} by name"
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._link(annotation)
        return {type(None): "`null`", Path: "path"}.get(annotation, getattr(annotation, "__name__", str(annotation)))

    def _link(self, model: type[BaseModel]) -> str:
        """To the one place where a section's keys stand."""
        if model not in self.homes:
            return f"[{model.__name__}](#{_slug(model.__name__)})"
        home = self.homes[model]
        if KIND in model.model_fields:
            kind = model.model_fields[KIND].default
            return f"[{kind}](#{_slug(f'{home}, kind {kind}')})"
        return f"[{home}](#{_slug(home)})"

    def _heading(self, level: int, title: str) -> None:
        self.lines += [f"{'#' * level} {title}", ""]

    def _text(self, text: str) -> None:
        self.lines += [text, ""]


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted key, model) of every section below a model."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}.NAME" if get_origin(field.annotation) is dict else f"{prefix}{name}"
        for inner in _models(field.annotation):
            yield path, inner
            yield from _walk(inner, f"{path}.")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for one in get_args(annotation) for model in _models(one)]


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _limit(rule: Any) -> str:
    """`>= 1` of a field's constraint; nothing of what is no limit."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
    return " ".join(f"{sign} {getattr(rule, name)}" for name, sign in signs.items() if hasattr(rule, name))


def _slug(title: str) -> str:
    """The anchor that a heading gets where Markdown is shown."""
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split())


def _first_sentence(text: str | None) -> str:
    return re.split(r"(?<!Eq)\. ", _paragraph(text))[0].removesuffix(".") + "."


def _cell(text: str) -> str:
    return _paragraph(text).replace("|", "\\|")


def _markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def configuration() -> str:
    """The page docs/configuration.md."""
    return Reference().page()


def command_line() -> str:
    """The page docs/cli.md."""
    group: Any = typer.main.get_command(app)
    commands = [(name, one) for name, one in group.commands.items() if not one.hidden]
    uses = Counter(_row(one) for _, command in commands for one in command.params)
    found = [[row for row in map(_row, command.params) if uses[row] > COMMON] for _, command in commands]
    shared = [
        *dict.fromkeys(chain.from_iterable(sorted(found, key=len, reverse=True)))
    ]  # in the order of who takes most
    listed = [(f"[`wovr {name}`](#wovr-{name})", _cell(one.get_short_help_str(200))) for name, one in commands]
    stages = [(f"`{name}`", f"`wovr {one.command}`", one.reads, one.writes) for name, one in STAGES.items()]
    parts = [f"{MADE}\n\n# The command line", _help(group.help), _markdown_table(("command", "what it does"), listed)]
    parts += ["Of `wovr` itself:", _markdown_table(OPTIONS, [_row(one) for one in group.params]), ENDS]
    parts += [_help(EXAMPLES)]
    parts += ["## Stages", STAGES_OF, _markdown_table(("stage", "command", "reads", "writes"), stages)]
    parts += ["## Shared arguments", SHARED, _markdown_table(OPTIONS, shared)]
    for name, command in commands:
        usage = " ".join(command.collect_usage_pieces(typer.Context(command))).replace("{", "").replace("}", "")
        parts += [f"## wovr {name}", f"```\nwovr {name} {usage}\n```", _help(command.help)]
        own = [row for row in map(_row, command.params) if row not in shared]
        others = [row[0] for row in map(_row, command.params) if row in shared]
        if others:
            parts += [f"Takes {', '.join(others)} ([shared arguments](#shared-arguments))" + (", and:" if own else ".")]
        if own:
            parts += [_markdown_table(OPTIONS, own)]
        parts += [_help(command.epilog or "")]
    return "\n\n".join(filter(None, parts)) + "\n"


def _row(one: Any) -> tuple[str, str, str]:
    """An argument or option: what is typed, what it means, its default."""
    is_argument, is_flag = one.param_type_name == "argument", getattr(one, "is_flag", False)
    names = [one.metavar or one.name.upper()] if is_argument else [*one.opts, *one.secondary_opts]
    takes = "" if is_argument or is_flag else f" {one.metavar or _value(one.type_descriptor.annotation)}"
    default = "" if one.default is None or (is_flag and one.default is False) else f"`{one.default}`"
    if isinstance(one.show_default, str):
        default = one.show_default.replace("<", "&lt;")
    typed = ", ".join(f"`{_cell(name + takes)}`" for name in names)
    return typed, _cell(one.help or ""), "required" if one.required else _cell(default)


def _value(annotation: Any) -> str:
    """What stands for an option's value: `INT` for integers and lists of them, choices by name."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    kind = (*get_args(annotation), annotation)[0]
    return getattr(kind, "__name__", str(kind)).upper()


def _help(text: str) -> str:
    """Paragraphs; those that are to be kept as they are (\\b) as code."""
    kept = []
    for paragraph in text.strip("\n").split("\n\n"):
        if "\b\n" in paragraph:
            before, code = paragraph.split("\b\n", 1)
            kept += [before.strip(), f"```\n{textwrap.dedent(code).rstrip()}\n```"]
        else:
            kept.append(_paragraph(paragraph))
    return "\n\n".join(filter(None, kept))


PAGES = {"configuration.md": configuration, "cli.md": command_line}


def main() -> None:
    """Write all pages beside this file."""
    for name, make in PAGES.items():
        (Path(__file__).parent / name).write_text(make())


if __name__ == "__main__":
    main()
