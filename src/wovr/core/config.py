"""Configuration: strict pydantic models, one YAML file per experiment, `key=value` overrides.

Every configurable class has its `Config` subclass beside it; `wovr.stages` composes them into one experiment.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from wovr.core.errors import UserError


class Config(BaseModel):
    """Base of all configs: unknown keys are errors, values are immutable, field docstrings are documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


C = TypeVar("C", bound=Config)

KIND = "kind"
"""Key that tells which of several models a section follows."""


def load_config(schema: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """Read `path`, apply `key.sub=value` overrides (values are YAML) and validate against `schema`.

    A file may name another under `extends`, or a list of them in which later ones win, relative to itself; its own keys
    win. Other relative paths in a file are relative to it too; those in overrides are relative to the working
    directory. Raises UserError in one line.
    """
    raw = _read(path, schema)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: expected key=value, for example rl.updates=20")
        _assign(raw, key.strip(), _parse(text, override))
    return validate(schema, raw, str(path))


def validate(schema: type[C], raw: Mapping[str, Any], origin: str) -> C:
    """`raw` as a config; UserError in one line that starts with `origin` and names the first key that does not fit."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {_first_problem(schema, error)}") from None


def save_config(config: Config, path: Path) -> None:
    """Write every value, defaults included, so that a run can be read without the code that made it."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, key by key, without touching either."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(dotted key, old value, new value) of the first difference, None where a key is absent; None when equal."""
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = first_difference(before, after)
            if inner is not None:
                return (f"{key}.{inner[0]}", *inner[1:])
        elif before != after:
            return key, before, after
    return None


def _read(path: Path, schema: type[BaseModel], seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: expected a YAML config file, found none")
    if path.resolve() in seen:
        raise UserError(f"{path}: key 'extends' leads back to the file itself")
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected YAML, found {' '.join(str(error).split())}") from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top, found {type(raw).__name__}")
    parents = raw.pop("extends", None) or []
    _anchor(raw, schema, path.parent)
    merged: dict[str, Any] = {}
    for parent in parents if isinstance(parents, list) else [parents]:
        merged = merge(merged, _read(path.parent / str(parent), schema, (*seen, path.resolve())))
    return merge(merged, raw)


def _anchor(raw: dict[str, Any], schema: type[BaseModel], folder: Path) -> None:
    """Take relative paths in `raw` from `folder`.

    They are written relative to the working directory where they lie below it: a checkout that was moved can then
    still continue its runs, whose folders keep the config.
    """
    for key, field in schema.model_fields.items():
        value = raw.get(key)
        section = _section(schema, key, value.get(KIND) if isinstance(value, dict) else None)
        if isinstance(value, dict) and section is not None:
            _anchor(value, section, folder)
        elif isinstance(value, str) and Path in (field.annotation, *get_args(field.annotation)):
            path = (folder / value).resolve()
            raw[key] = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _parse(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: expected a YAML value after '='") from None


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node = raw
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise UserError(f"override {dotted!r}: {part!r} holds a value, not a section")
        node = child
    node[leaf] = value


def _first_problem(schema: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    path, siblings = _place(schema, problem["loc"])
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], siblings, n=1)
        return f"unknown key '{key}'" + (
            f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(siblings)}"
        )
    said = problem["msg"].removeprefix("Value error, ")
    return f"key '{key}': {said[0].lower()}{said[1:]}, found {problem['input']!r}"


def _place(schema: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The keys that lead to a problem, as the file has them, and the names that the last one could have had.

    Where a section comes in several kinds, pydantic puts the kind behind its key.
    """
    path: list[str] = []
    siblings: list[str] = []
    section: type[BaseModel] | None = schema
    parts = [str(part) for part in loc]
    while parts:
        path.append(parts.pop(0))
        siblings = list(section.model_fields) if section else []
        kinds = _sections(section, path[-1]) if section else []
        kind = parts.pop(0) if len(kinds) > 1 and parts else None
        section = _section(section, path[-1], kind) if section else None
    return path, siblings


def _section(schema: type[BaseModel], key: str, kind: str | None = None) -> type[BaseModel] | None:
    """The model under a key that holds one, or one or nothing; of several that of this kind, or else the first."""
    kinds = _sections(schema, key)
    asked = [one for one in kinds if KIND in one.model_fields and one.model_fields[KIND].default == kind]
    return next(iter(asked + kinds), None)


def _sections(schema: type[BaseModel], key: str) -> list[type[BaseModel]]:
    field = schema.model_fields.get(key)
    candidates = (field.annotation, *get_args(field.annotation)) if field else ()
    plain = [one.__origin__ if get_origin(one) is Annotated else one for one in candidates]
    return [kind for kind in plain if isinstance(kind, type) and issubclass(kind, BaseModel)]
