"""The instruction as Llama's tokens.

The tokenizer is read from the folder's `tokenizer.json` by the tokenizers library. Legend: B batch, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, normalizers
from torch import Tensor

from wovr.core.errors import UserError

START, STOP, SPACE = 1, 2, 29871
"""Llama-2's ids of `<s>`, of `</s>`, and of a lone space, with which every prompt ends."""
PADDING = -1
"""Stands before a shorter prompt of a batch; no token."""


class Prompts:
    """Tokens of instructions, each computed once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, instructions: Sequence[str]) -> Tensor:
        """(B, L) int64, without `<s>`, padded on the left with `PADDING`."""
        rows = [self._ids(instruction) for instruction in instructions]
        length = max(map(len, rows), default=1)
        return torch.tensor([[PADDING] * (length - len(row)) + row for row in rows], dtype=torch.int64)

    def _ids(self, instruction: str) -> list[int]:
        if instruction not in self._known:
            text = f"In: What action should the robot take to {instruction.lower()}?\nOut: "
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            self._known[instruction] = ids if ids[-1] == SPACE else [*ids, SPACE]
        return self._known[instruction]


def read_tokenizer(text: str, path: str, vocab: int) -> Tokenizer:
    """The tokenizer in the text of a `tokenizer.json`; UserError that names `path` where it is not Llama's.

    `vocab` is how many ids the network has an embedding for, its padding left out.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises this class itself
        raise UserError(f"{path}: expected a tokenizer, found {str(error).splitlines()[0]}") from None
    tokenizer.no_padding()  # a file may ask for either
    tokenizer.no_truncation()
    for token, number in (("<s>", START), ("</s>", STOP), ("▁", SPACE)):
        if tokenizer.token_to_id(token) != number:
            raise UserError(
                f"{path}: expected {number} for '{token}' as Llama-2 has it, found {tokenizer.token_to_id(token)}"
            )
    try:
        largest = max(tokenizer.get_vocab(with_added_tokens=False).values())
    except ValueError:
        largest = 0
    if largest >= vocab:
        raise UserError(f"{path}: expected ids below {vocab}, the size of the text vocabulary, found {largest}")
    return tokenizer


def byte_tokenizer() -> str:
    """A `tokenizer.json` with Llama's special tokens and its 256 bytes: for policies with random weights."""
    vocab = {"<unk>": 0, "<s>": START, "</s>": STOP, "▁": SPACE} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)
