"""What belongs to a policy and is no weight: the small text files of its published folder, carried along unchanged.

`tokenizer.json` and `dataset_statistics.json` are needed; `config.json` is compared with our config where it is there;
`preprocessor_config.json` gives the pictures' normalisation. All others are only kept, so that an export is what the
published code expects.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wovr.core.errors import UserError
from wovr.policy.openvla_oft.actions import check_statistics
from wovr.policy.openvla_oft.config import OpenVLAOFTConfig
from wovr.policy.openvla_oft.prompt import byte_tokenizer, read_tokenizer

TOKENIZER, STATISTICS = "tokenizer.json", "dataset_statistics.json"
MODEL, PREPROCESSOR = "config.json", "preprocessor_config.json"
KEPT = (
    MODEL,
    TOKENIZER,
    STATISTICS,
    PREPROCESSOR,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""Files of a published folder that are carried along where they are there."""
MEANS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
STDS = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))
"""Of DINOv2's and of SigLIP's pictures, where `preprocessor_config.json` gives none."""


@dataclass(frozen=True, slots=True)
class Assets:
    """The files, checked against a config."""

    files: dict[str, str]
    """Name to text."""
    section: dict[str, Any]
    """Of the statistics, that of the config's key."""
    means: tuple[tuple[float, ...], ...]
    """(DINOv2's, SigLIP's), three colours each, of pictures in [0, 1]."""
    stds: tuple[tuple[float, ...], ...]
    """The same for standard deviations."""


def read_assets(folder: Path, config: OpenVLAOFTConfig) -> Assets:
    """Of a published folder; UserError that names the file and key that is missing or does not fit `config`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder with a published OpenVLA-OFT checkpoint, found none")
    files = {name: (folder / name).read_text() for name in KEPT if (folder / name).is_file()}
    return parse(files, config, f"{folder}/")


def parse(files: dict[str, str], config: OpenVLAOFTConfig, origin: str) -> Assets:
    """The same from texts; `origin` precedes a file's name in an error."""
    for name in (TOKENIZER, STATISTICS):
        if name not in files:
            raise UserError(f"{origin}{name}: expected this file of an OpenVLA-OFT checkpoint, found none")
    read_tokenizer(files[TOKENIZER], origin + TOKENIZER, config.text_vocab)
    statistics = _json(files[STATISTICS], origin + STATISTICS)
    section = check_statistics(origin + STATISTICS, statistics, config.statistics, config.action_dim, config.proprio)
    if MODEL in files:
        _check_model(_json(files[MODEL], origin + MODEL), origin + MODEL, config)
    pictures = _json(files[PREPROCESSOR], origin + PREPROCESSOR) if PREPROCESSOR in files else {}
    means, stds = (
        _colours(pictures.get(key, default), f"{origin}{PREPROCESSOR}: key '{key}'")
        for key, default in (("means", MEANS), ("stds", STDS))
    )
    return Assets(files, section, means, stds)


def stand_in(config: OpenVLAOFTConfig) -> Assets:
    """For random weights: a tokenizer of bytes, and actions that are in [-1, 1] already."""
    A, P = config.action_dim, config.proprio
    action = {"q01": [-1.0] * A, "q99": [1.0] * A, "mask": [True] * (A - 1) + [False]}
    section = {"action": action, "proprio": {"q01": [-1.0] * P, "q99": [1.0] * P}}
    files = {
        MODEL: json.dumps(model_json(config), indent=2),
        TOKENIZER: byte_tokenizer(),
        STATISTICS: json.dumps({config.statistics: section}, indent=2),
        PREPROCESSOR: json.dumps(_preprocessor(config.image_size), indent=2),
    }
    return parse(files, config, "")


def model_json(config: OpenVLAOFTConfig) -> dict[str, Any]:
    """A `config.json` as OpenVLA's code writes it, without the paths to its own code."""
    llama = config.llama
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
        "image_sizes": [config.image_size] * 2,
        "image_resize_strategy": "resize-naive",
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "n_action_bins": config.bins,
        "pad_token_id": config.text_vocab,
        "pad_to_multiple_of": llama.padding,
        "text_config": {"model_type": "llama", "pad_token_id": config.text_vocab} | _text_config(config),
    }


def _text_config(config: OpenVLAOFTConfig) -> dict[str, Any]:
    llama = config.llama
    return {
        "vocab_size": llama.vocab,
        "hidden_size": llama.width,
        "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads,
        "intermediate_size": llama.mlp_width,
        "rms_norm_eps": llama.norm_eps,
        "rope_theta": llama.rope_theta,
    }


def _check_model(found: dict[str, Any], path: str, config: OpenVLAOFTConfig) -> None:
    """What shapes of tensors don't show; keys that are absent are not compared."""
    text = found.get("text_config")
    pairs = [
        (found, "n_action_bins", config.bins, "bins"),
        (found, "pad_to_multiple_of", config.llama.padding, "llama.padding"),
        (found, "timm_override_act_layers", [None, None], ""),
    ]
    if isinstance(text, dict):
        wanted = _text_config(config)
        pairs += [
            (text, key, wanted[key], f"llama.{ours}")
            for key, ours in (
                ("vocab_size", "vocab"),
                ("num_attention_heads", "heads"),
                ("rms_norm_eps", "norm_eps"),
                ("rope_theta", "rope_theta"),
            )
        ]
    for section, key, value, ours in pairs:
        if section.get(key, value) != value:
            said = f" as in `policy.{ours}`" if ours else ""
            raise UserError(f"{path}: key '{key}': expected {value}{said}, found {section[key]}")


def _colours(found: Any, place: str) -> tuple[tuple[float, ...], ...]:
    try:
        values = tuple(tuple(float(value) for value in row) for row in found)
    except (TypeError, ValueError):
        values = ()
    if [len(row) for row in values] != [3, 3]:
        raise UserError(f"{place}: expected three numbers for each of two vision transformers, found {found}")
    return values


def _preprocessor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": True,
        "input_sizes": [[3, size, size]] * 2,
        "interpolations": ["bicubic", "bicubic"],
        "means": MEANS,
        "stds": STDS,
    }


def _json(text: str, path: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(found).__name__}")
    return found
