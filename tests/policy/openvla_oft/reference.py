"""OpenVLA-OFT once more, without our code: the published files, and the forward pass of one observation in float64.

Names, shapes and order of operations are those of timm's vision transformers, of OpenVLA's projector and of Llama-2
with attention both ways; attention, rotary positions and norms are written out. One observation at a time, unpadded.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from torch import Tensor
from torch.nn.functional import conv2d, gelu, interpolate, silu

from wovr.core.seed import normal
from wovr.policy.openvla_oft.config import LlamaSize, OpenVLAOFTConfig, SiglipConfig, ViTConfig

A, P, VOCAB, KEY = 7, 8, 32064, "libero_goal_no_noops"
CONFIG = OpenVLAOFTConfig(
    chunk_length=2,
    image_size=42,
    dino=ViTConfig(width=16, depth=3, heads=2, mlp_width=32),
    siglip=SiglipConfig(width=12, depth=3, heads=2, mlp_width=20),
    llama=LlamaSize(width=16, layers=2, heads=2, mlp_width=24),
)
TEXT = ("put the bowl on the plate", "Open the Drawer", "push it")
Shapes = dict[str, tuple[int, ...]]


def shapes(config: OpenVLAOFTConfig) -> Shapes:
    """Every tensor of the published safetensors files."""
    found: Shapes = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    for tower, size, patches in (
        ("featurizer", config.dino, (config.image_size // 14) ** 2),
        ("fused_featurizer", config.siglip, (config.image_size // 14) ** 2),
    ):
        D, at = size.width, f"vision_backbone.{tower}"
        found[f"{at}.pos_embed"] = (1, patches, D)
        found[f"{at}.patch_embed.proj.weight"], found[f"{at}.patch_embed.proj.bias"] = (D, 3, 14, 14), (D,)
        norm(f"{at}.norm", D)
        for block in (f"{at}.blocks.{i}" for i in range(size.depth)):
            norm(f"{block}.norm1", D)
            norm(f"{block}.norm2", D)
            linear(f"{block}.attn.qkv", D, 3 * D)
            linear(f"{block}.attn.proj", D, D)
            linear(f"{block}.mlp.fc1", D, size.mlp_width)
            linear(f"{block}.mlp.fc2", size.mlp_width, D)
            if tower == "featurizer":
                found[f"{block}.ls1.scale_factor"] = found[f"{block}.ls2.scale_factor"] = (D,)
        if tower == "featurizer":
            found[f"{at}.cls_token"], found[f"{at}.reg_token"] = (1, 1, D), (1, 4, D)
        else:
            pool = f"{at}.attn_pool"
            found[f"{pool}.latent"] = (1, 1, D)
            for name, outputs in (("q", D), ("kv", 2 * D), ("proj", D), ("mlp.fc1", size.mlp_width)):
                linear(f"{pool}.{name}", D, outputs)
            linear(f"{pool}.mlp.fc2", size.mlp_width, D)
            norm(f"{pool}.norm", D)
    features, D, F = config.dino.width + config.siglip.width, config.llama.width, config.llama.mlp_width
    linear("projector.fc1", features, 4 * features)
    linear("projector.fc2", 4 * features, D)
    linear("projector.fc3", D, D)
    found["language_model.model.embed_tokens.weight"] = found["language_model.lm_head.weight"] = (VOCAB, D)
    found["language_model.model.norm.weight"] = (D,)
    for layer in (f"language_model.model.layers.{i}" for i in range(config.llama.layers)):
        found |= {f"{layer}.self_attn.{letter}_proj.weight": (D, D) for letter in "qkvo"}
        found |= {f"{layer}.mlp.{gate}_proj.weight": (F, D) for gate in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (D, F)
        found |= {f"{layer}.{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
    return found


def write(folder: Path, config: OpenVLAOFTConfig = CONFIG, proprio: bool = False) -> Path:
    """A published folder with random weights, which are loud enough for every part to matter."""
    folder.mkdir(parents=True)
    weights = {name: random(name, shape) for name, shape in shapes(config).items()}
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in files.items():
        save_file({name: weights[name] for name in chosen}, folder / file, metadata={"format": "pt"})
    placed = {name: file for file, chosen in files.items() for name in chosen}
    size = sum(value.nbytes for value in weights.values())
    put(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": placed})
    tokenizer().save(str(folder / "tokenizer.json"))
    put(folder / "dataset_statistics.json", statistics())
    put(
        folder / "preprocessor_config.json",
        {"means": [[0.48, 0.45, 0.4], [0.5, 0.5, 0.5]], "stds": [[0.22, 0.23, 0.24], [0.5, 0.5, 0.6]]},
    )
    text = {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": VOCAB}
    heads = {"num_attention_heads": config.llama.heads}
    put(folder / "config.json", {"model_type": "openvla", "n_action_bins": 256, "text_config": text | heads})
    if proprio:
        D = config.llama.width
        projector = {"fc1.weight": (D, P), "fc1.bias": (D,), "fc2.weight": (D, D), "fc2.bias": (D,)}
        tensors = {f"module.{name}": random(f"proprio.{name}", shape) for name, shape in projector.items()}
        torch.save(tensors, folder / "proprio_projector--150000_checkpoint.pt")
    return folder


def random(name: str, shape: tuple[int, ...]) -> Tensor:
    values = normal(shape, 0, name)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight")):
        return 1 + 0.2 * values
    return values * (0.5 if len(shape) == 1 or "token" in name or "embed" in name else 1 / math.sqrt(shape[-1]))


def put(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def statistics() -> dict[str, object]:
    low, high = [-0.5, -0.4, -0.9, -0.1, -0.2, -0.3, 0.0], [0.9, 0.8, 0.9, 0.1, 0.3, 0.2, 1.0]
    action = {"q01": low, "q99": high, "mask": [True] * 6 + [False]}
    proprio = {"q01": [-0.5] * P, "q99": [0.1 * i + 0.2 for i in range(P)]}
    return {KEY: {"action": action, "proprio": proprio}, "other": {"action": {"q01": [0], "q99": [1]}}}


def tokenizer() -> Tokenizer:
    """In Llama's form: bytes to fall back to, a few merges, a lone space far behind, `<PAD>` behind the vocabulary."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("o", "n"), ("▁", "p"), ("o", "w")]
    for token in (*(first + second for first, second in merges), *"abcdefghijklmnopqrstuvwxyzINOTW:?"):
        vocab.setdefault(token, len(vocab))
    vocab["▁"] = 29871
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>", "<unk>")])
    return made


class Reference:
    """The forward pass of one observation, from the files in a folder."""

    def __init__(self, folder: Path, config: OpenVLAOFTConfig) -> None:
        self.config = config
        self.w: dict[str, Tensor] = {}
        for file in folder.glob("*.safetensors"):
            self.w |= {name: value.double() for name, value in load_file(file).items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.statistics = json.loads((folder / "dataset_statistics.json").read_text())[KEY]
        pictures = json.loads((folder / "preprocessor_config.json").read_text())
        self.means, self.stds = (torch.tensor(pictures[key]).double() for key in ("means", "stds"))
        for file in folder.glob("proprio_projector*"):
            self.w |= {name.replace("module", "proprio"): value.double() for name, value in torch.load(file).items()}

    def logits(self, views: list[np.ndarray], instruction: str, proprio: np.ndarray | None = None) -> Tensor:
        """Of the whole vocabulary, (K, 32064)."""
        prompt = f"In: What action should the robot take to {instruction.lower()}?\nOut: "
        ids = self.tokenizer.encode(prompt).ids
        assert ids[0] == 1 and ids[-1] == 29871
        embed, K = self.w["language_model.model.embed_tokens.weight"], self.config.tokens
        parts = [embed[ids[:1]], *(self.patches(view) for view in views)]
        if proprio is not None:
            low, high = (np.array(self.statistics["proprio"][key]) for key in ("q01", "q99"))
            normal_P = np.clip(2 * (proprio - low) / (high - low + 1e-8) - 1, -1, 1)
            hidden = gelu(self.linear("proprio.fc1", torch.from_numpy(normal_P)))
            parts.append(self.linear("proprio.fc2", hidden)[None])
        parts += [embed[ids[1:]], torch.zeros(K, embed.shape[1]).double()]
        predicting = sum(map(len, parts)) - K - 1
        x = self.llama(torch.cat([*parts, embed[[2]]] if self.config.stop_token else parts))
        return x[predicting : predicting + K] @ self.w["language_model.lm_head.weight"].T

    def log_probs(self, logits: Tensor, temperature: float) -> Tensor:
        """(K, 256): of the last tokens of the text vocabulary, all others being excluded."""
        allowed = torch.full_like(logits, -math.inf)
        allowed[:, 31744:32000] = logits[:, 31744:32000] / temperature
        return torch.log_softmax(allowed, dim=-1)[:, 31744:32000]

    def actions(self, tokens: Tensor) -> np.ndarray:
        """(H, A) in LIBERO's units of tokens 0..255, as the published evaluation computes them."""
        edges = np.linspace(-1, 1, 256)
        centres = (edges[:-1] + edges[1:]) / 2
        index = np.clip(32000 - (31744 + tokens.numpy()) - 1, 0, 254)
        values = centres[index].reshape(-1, A)
        low, high = (np.array(self.statistics["action"][key]) for key in ("q01", "q99"))
        data = np.where(self.statistics["action"]["mask"], 0.5 * (values + 1) * (high - low + 1e-8) + low, values)
        data[:, -1] = -np.sign(2 * data[:, -1] - 1)
        return data

    def patches(self, frame: np.ndarray) -> Tensor:
        side = self.config.image_size
        picture = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        if picture.shape[-1] != side:
            picture = interpolate(picture, (side, side), mode="bicubic", antialias=True).clamp(0, 255).round()
        picture = picture.double() / 255
        towers = [("featurizer", self.config.dino), ("fused_featurizer", self.config.siglip)]
        features = [
            self.tower(f"vision_backbone.{name}", size, (picture - mean[:, None, None]) / std[:, None, None])
            for (name, size), mean, std in zip(towers, self.means, self.stds, strict=True)
        ]
        x = gelu(self.linear("projector.fc1", torch.cat(features, dim=1)))
        return self.linear("projector.fc3", gelu(self.linear("projector.fc2", x)))

    def tower(self, at: str, size: ViTConfig, picture: Tensor) -> Tensor:
        proj = f"{at}.patch_embed.proj"
        x = conv2d(picture, self.w[f"{proj}.weight"], self.w[f"{proj}.bias"], stride=14)[0].flatten(1).T
        x = x + self.w[f"{at}.pos_embed"][0]
        dino = f"{at}.cls_token" in self.w
        if dino:
            x = torch.cat([self.w[f"{at}.cls_token"][0], self.w[f"{at}.reg_token"][0], x])
        for i in range(size.depth - 1):  # the outputs of the second-to-last block
            block = f"{at}.blocks.{i}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.layer_norm(f"{block}.norm1", x)).chunk(3, dim=1)
            y = self.linear(f"{block}.attn.proj", attention(q, k, v, size.heads))
            x = x + (y * self.w[f"{block}.ls1.scale_factor"] if dino else y)
            y = gelu(self.linear(f"{block}.mlp.fc1", self.layer_norm(f"{block}.norm2", x)))
            y = self.linear(f"{block}.mlp.fc2", y)
            x = x + (y * self.w[f"{block}.ls2.scale_factor"] if dino else y)
        return x[5:] if dino else x

    def llama(self, x: Tensor) -> Tensor:
        heads = self.config.llama.heads
        for i in range(self.config.llama.layers):
            layer = f"language_model.model.layers.{i}"
            y = self.rms_norm(f"{layer}.input_layernorm", x)
            q, k, v = (y @ self.w[f"{layer}.self_attn.{letter}_proj.weight"].T for letter in "qkv")
            y = attention(rotated(q, heads), rotated(k, heads), v, heads)
            x = x + y @ self.w[f"{layer}.self_attn.o_proj.weight"].T
            y = self.rms_norm(f"{layer}.post_attention_layernorm", x)
            y = silu(y @ self.w[f"{layer}.mlp.gate_proj.weight"].T) * (y @ self.w[f"{layer}.mlp.up_proj.weight"].T)
            x = x + y @ self.w[f"{layer}.mlp.down_proj.weight"].T
        return self.rms_norm("language_model.model.norm", x)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{name}.weight"]


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Every row attends to every row; (S, D)."""
    outputs = []
    for q_h, k_h, v_h in zip(q.chunk(heads, dim=1), k.chunk(heads, dim=1), v.chunk(heads, dim=1), strict=True):
        outputs.append(torch.softmax(q_h @ k_h.T / math.sqrt(q_h.shape[1]), dim=-1) @ v_h)
    return torch.cat(outputs, dim=1)


def rotated(x: Tensor, heads: int) -> Tensor:
    """Channels i and i + E/2 of a head are a plane that turns by position * 10000^(-2i/E)."""
    turned = []
    for x_h in x.chunk(heads, dim=1):
        half = x_h.shape[1] // 2
        speed = torch.tensor([10000.0 ** (-i / half) for i in range(half)]).double()
        angle = torch.arange(len(x)).double()[:, None] * speed
        first, second = x_h[:, :half], x_h[:, half:]
        turned += [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()]
    return torch.cat(turned, dim=1)


def observations(count: int, height: int = 64, width: int = 64) -> dict[str, np.ndarray]:
    """Frames that vary, of both cameras, and proprioception."""
    values = normal((count, height // 8, width // 8, 3), 0, "frames").repeat_interleave(8, 1).repeat_interleave(8, 2)
    frames = (values * 60 + 120).clamp(0, 255).byte().numpy()
    proprio = 0.3 * normal((count, P), 0, "proprio").numpy()
    return {"frames_BHWC": frames, "wrist_BHWC": frames[::-1, ::-1].copy(), "proprio_BP": proprio}
