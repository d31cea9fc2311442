"""Published files: found, or named in one line; read without running what is in them."""

import pickle

import pytest
import torch
from torch import nn

from wovr.core.errors import UserError
from wovr.metrics.published import ALEXNET, I3D, INCEPTION, RAFT, WEIGHTS_VARIABLE, find_files, load_published


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)


def test_nothing_is_looked_for_without_a_metric():
    assert find_files([], None) == {}


def test_a_folder_or_the_variable(tmp_path, monkeypatch):
    for file in (ALEXNET, RAFT):
        (tmp_path / file.name).touch()
    expected = {ALEXNET: tmp_path / ALEXNET.name, RAFT: tmp_path / RAFT.name}
    assert find_files(["lpips", "flolpips"], tmp_path) == expected
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    assert find_files(["flolpips"], None) == expected
    with pytest.raises(UserError):
        find_files(["flolpips"], tmp_path / "other")


def test_all_that_is_missing_is_in_one_line(tmp_path):
    (tmp_path / INCEPTION.name).touch()
    with pytest.raises(UserError) as error:
        find_files(["lpips", "fid", "fvd"], tmp_path)
    line = str(error.value)
    assert ALEXNET.name in line and I3D.name in line and INCEPTION.name not in line
    assert str(tmp_path) in line and "\n" not in line
    with pytest.raises(UserError, match=f"neither world_model_eval.weights nor {WEIGHTS_VARIABLE}"):
        find_files(["lpips"], None)


class Code:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("content", ["truncated", "code", "list", "script"])
def test_what_is_no_state_dict_is_refused(content, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    if content == "script":
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    else:
        torch.save({"code": Code(), "list": [1.0], "truncated": nn.Linear(2, 2).state_dict()}[content], path)
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"weights\.pth: expected a torch file of tensors by name") as error:
        load_published(path, nn.Linear(2, 2))
    assert "\n" not in str(error.value) and "ran" not in capsys.readouterr().out


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Code()))
    with pytest.raises(UserError, match="expected a torch file of tensors by name"):
        load_published(tmp_path / "weights.pth", nn.Linear(2, 2))


def test_weights_must_fit_but_for_parts_that_are_left_out(tmp_path):
    path, module = tmp_path / "weights.pth", nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {name: torch.rand_like(value) for name, value in module.state_dict().items() if "num" not in name}
    torch.save(state | {"head.weight": torch.zeros(1)}, path)
    load_published(path, module, without="head.")
    assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(UserError, match=r"found 1 unexpected: head\.weight"):
        load_published(path, module)
