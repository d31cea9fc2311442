"""Wan2.2's VAE in the files that it comes in, and files that are none."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.codec.wans import TINY, make_vae, original
from wovr.codec.wan import WanCodec
from wovr.codec.wan_weights import check_wan_codec, load_wan_codec
from wovr.core.errors import UserError
from wovr.imagine.load import StoredCodec, load_codec, save_codec

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae() -> Any:
    return make_vae()


def write(vae: Any, folder: Path, kind: str) -> Path:
    if kind.startswith("diffusers"):
        vae.save_pretrained(folder / "vae", max_shard_size="30KB" if kind == "diffusers shards" else "1GB")
        return folder / "vae" / WEIGHTS if kind == "diffusers file" else folder / "vae"
    path = folder / "Wan2.2_VAE.pth"
    torch.save(original(vae), path, _use_new_zipfile_serialization=kind == "published")
    return path


@pytest.mark.parametrize(
    "kind", ["diffusers", "diffusers file", "diffusers shards", "published", "published, old format"]
)
def test_every_layout_gives_the_same_codec(vae: Any, tmp_path: Path, kind: str) -> None:
    codec = load_wan_codec(write(vae, tmp_path, kind), TINY)
    weights = codec.state_dict()
    assert weights.keys() == vae.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in vae.state_dict().items())
    assert not any(value.is_meta for value in weights.values())

    path = tmp_path / "codec.safetensors"
    save_codec(path, codec)
    assert load_file(path).keys() == weights.keys()
    again = load_codec(path)
    assert isinstance(again, WanCodec) and again.config == TINY
    assert all(torch.equal(again.state_dict()[name], value) for name, value in weights.items())
    stored = StoredCodec(path)
    assert (stored.stride, stored.channels) == (4, 3) and "codec" not in vars(stored), "read from the header alone"
    assert isinstance(stored.codec, WanCodec)


class Payload:
    """Unpickled plainly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_pickle_is_executed(vae: Any, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "Wan2.2_VAE.pth"
    writers = {
        "beside the tensors": lambda: torch.save(original(vae) | {"conv1.weight": Payload(mark)}, path),
        "in the old format": lambda: torch.save(Payload(mark), path, _use_new_zipfile_serialization=False),
        "alone": lambda: path.write_bytes(pickle.dumps(Payload(mark), protocol=2)),
    }
    for name, writer in writers.items():
        writer()
        with pytest.raises(UserError, match="expected a torch file of tensors by name, found ") as caught:
            load_wan_codec(path, TINY)
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value), name
        assert not mark.exists(), name
    with path.open("rb") as file:
        pickle.load(file)
    assert mark.exists(), "the payload is one"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(1)], "found list"),
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "key 'state_dict': expected a tensor, found dict"),
        ({"step": 3}, "key 'step': expected a tensor, found int"),
    ],
)
def test_other_torch_files_are_refused(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth: .*{found}"):
        check_wan_codec(tmp_path / "other.pth", TINY)


@pytest.mark.parametrize("kind", ["diffusers", "diffusers shards", "published", "published, old format"])
def test_a_cut_file_is_named(vae: Any, tmp_path: Path, kind: str) -> None:
    path = write(vae, tmp_path, kind)
    file = path if path.is_file() else sorted(path.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=rf"{file.name}: expected .*(file|tensors).*, found ") as caught:
        load_wan_codec(path, TINY)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_named(vae: Any, tmp_path: Path) -> None:
    more = TINY.model_copy(update={"channels": 4, "latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4})
    folder = write(vae, tmp_path, "diffusers")
    with pytest.raises(UserError, match=r"config\.json: key 'z_dim': expected 4 as in `codec\.wan`, found 3"):
        check_wan_codec(folder, more)
    with pytest.raises(UserError, match=r"expected 4 latent channels as in `codec\.wan`, found 3"):
        check_wan_codec(folder / WEIGHTS, more)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"latents_std": [1.0, 1.0, 1.0]}))
    with pytest.raises(
        UserError, match=r"key 'latents_std': expected \[0\.5, 1\.5, 2\.0\] .*found \[1\.0, 1\.0, 1\.0\]"
    ):
        check_wan_codec(folder, TINY)

    weights = load_file(folder / WEIGHTS)
    del weights["decoder.conv_in.bias"]
    weights["decoder.conv_out.bias"] = torch.zeros(7)
    weights["extra"] = torch.zeros(1)
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as caught:
        load_wan_codec(tmp_path / "bad.safetensors", TINY)
    for part in ("1 missing: decoder.conv_in.bias", "1 unexpected: extra", "decoder.conv_out.bias [7] instead of [12]"):
        assert part in str(caught.value)
    for nothing in (tmp_path / "none.pth", tmp_path / "none.safetensors", tmp_path):
        (tmp_path / "bad.safetensors").unlink(missing_ok=True)
        with pytest.raises(UserError, match="found none"):
            check_wan_codec(nothing, TINY)
