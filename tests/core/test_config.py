from pathlib import Path

import pytest
import yaml

from wovr.core.config import Config, first_difference, load_config, merge, save_config, validate
from wovr.core.errors import UserError


class Inner(Config):
    rate: float = 0.1
    """Rate."""
    names: tuple[str, ...] = ("a",)
    """Names."""


class Outer(Config):
    inner: Inner = Inner()
    """Section."""
    steps: int = 3
    """Steps."""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_file_values_and_overrides_in_that_order(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "steps: 5\ninner: {rate: 0.2}\n")
    config = load_config(Outer, path, ["inner.rate=0.3", "inner.names=[x, y]"])
    assert (config.steps, config.inner.rate, config.inner.names) == (5, 0.3, ("x", "y"))


def test_extends_is_relative_and_own_keys_win(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "steps: 5\ninner: {rate: 0.2, names: [b]}\n")
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub" / "top.yaml", "extends: ../base.yaml\ninner: {rate: 0.9}\n")
    assert load_config(Outer, path) == Outer(steps=5, inner=Inner(rate=0.9, names=("b",)))


def test_of_several_parents_later_ones_win(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "steps: 5\ninner: {rate: 0.2, names: [b]}\n")
    write(tmp_path / "overlay.yaml", "inner: {rate: 0.3}\n")
    path = write(tmp_path / "top.yaml", "extends: [base.yaml, overlay.yaml]\ninner: {names: [c]}\n")
    assert load_config(Outer, path) == Outer(steps=5, inner=Inner(rate=0.3, names=("c",)))


class Files(Config):
    weights: Path | None = None
    """File."""
    inner: Inner | None = None
    """Section that may be absent."""


class Nested(Config):
    part: Files = Files()
    """Section."""


def test_relative_paths_are_taken_from_the_file_that_states_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs" / "ablations").mkdir(parents=True)
    base = write(tmp_path / "configs" / "base.yaml", "part: {weights: ../data/w.bin}\n")
    top = write(tmp_path / "configs" / "ablations" / "top.yaml", "extends: ../base.yaml\n")
    monkeypatch.chdir(tmp_path)
    for path in (base, top, base.relative_to(tmp_path)):
        assert load_config(Nested, path).part.weights == Path("data/w.bin"), "one spelling, whatever names the config"
    assert load_config(Nested, base, ["part.weights=mine.bin"]).part.weights == Path("mine.bin")
    assert load_config(Nested, base, ["part.weights=null"]).part.weights is None
    monkeypatch.chdir(tmp_path / "configs")
    assert load_config(Nested, base).part.weights == tmp_path / "data" / "w.bin"


def test_a_section_that_may_be_absent_still_names_its_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'inner\.rte'; did you mean 'rate'"):
        load_config(Files, write(tmp_path / "c.yaml", "inner: {rte: 1}"))


def test_saved_config_reads_back_equal(tmp_path: Path) -> None:
    config = Outer(inner=Inner(rate=1e-5, names=("b", "c")))
    save_config(config, tmp_path / "c.yaml")
    assert load_config(Outer, tmp_path / "c.yaml") == config
    assert set(yaml.safe_load((tmp_path / "c.yaml").read_text())) == {"inner", "steps"}


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("inner: {rte: 1}", [], "unknown key 'inner.rte'; did you mean 'rate'?"),
        ("zzz: 1", [], "unknown key 'zzz'; known: inner, steps"),
        ("steps: many", [], "key 'steps': "),
        ("steps: 1.5", [], "found 1.5"),
        ("- 1", [], "expected a mapping of keys at the top, found list"),
        ("steps: [", [], "expected YAML"),
        ("extends: c.yaml", [], "leads back to the file itself"),
        ("extends: gone.yaml", [], "gone.yaml: expected a YAML config file, found none"),
        ("", ["steps"], "expected key=value"),
        ("", ["steps=["], "expected a YAML value"),
        ("", ["steps.x=1"], "key 'steps'"),
        ("steps: 1", ["steps.x=1"], "holds a value, not a section"),
    ],
)
def test_bad_input_is_one_line_naming_what_is_wrong(
    tmp_path: Path, text: str, overrides: list[str], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        load_config(Outer, write(tmp_path / "c.yaml", text), overrides)
    assert expected in one_line(error)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config(Outer, tmp_path / "none.yaml")
    assert str(tmp_path / "none.yaml") in one_line(error)


def test_validate_starts_with_the_origin() -> None:
    with pytest.raises(UserError, match=r"^weights: unknown key 'a'"):
        validate(Outer, {"a": 1}, "weights")


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().steps = 4  # type: ignore[misc]


def test_merge_goes_deep_and_touches_neither() -> None:
    base, top = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "b": {"z": 4}}
    assert merge(base, top) == {"a": {"x": 1, "y": 3}, "b": {"z": 4}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, None),
        ({"a": {"b": 1}, "c": 2}, {"c": 3, "a": {"b": 9}}, ("a.b", 1, 9)),
        ({"a": 1}, {"a": 1, "b": 2}, ("b", None, 2)),
        ({"a": {"b": 1}}, {"a": 5}, ("a", {"b": 1}, 5)),
        ({"a": {"b": 1}}, {"a": {}}, ("a.b", 1, None)),
    ],
)
def test_first_difference(old: dict, new: dict, difference: tuple | None) -> None:
    assert first_difference(old, new) == difference
