"""Word ids and the text encoder."""

import pytest
import torch

from wovr.core.errors import UserError
from wovr.core.text import MAX_WORDS, TextEncoder, word_ids

COLOURS = "red green blue yellow orange purple white black grey pink cyan brown"
WORDS = "put the a block cube plate bowl disc on in onto into and pick up place push left right open close top drawer"


def test_ids_ignore_case_and_punctuation_and_pad_with_zero() -> None:
    ids_BL = word_ids(["Put the RED block, on the plate.", "put the red block on the plate"])
    assert ids_BL.shape == (2, MAX_WORDS)
    assert torch.equal(ids_BL[0], ids_BL[1])
    assert (ids_BL[0, :7] > 0).all() and (ids_BL[0, 7:] == 0).all()
    assert ids_BL[0, 1] == ids_BL[0, 5], "the same word has the same id"


def test_common_words_share_no_bucket() -> None:
    words = f"{COLOURS} {WORDS}".split()
    assert len(torch.unique(word_ids(words)[:, 0])) == len(words)


def test_too_long_an_instruction_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="at most 32 words, found 33"):
        word_ids(["go " * 33])


def test_encoder_tells_which_colour_belongs_to_which_noun() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(width=16)
    ids_BL = word_ids(["put the red block on the green plate", "put the green block on the red plate"])
    assert (encoder(ids_BL)[0] - encoder(ids_BL)[1]).abs().max() > 1e-3


def test_encoding_depends_neither_on_the_batch_nor_on_padding() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(width=16)
    ids_BL = word_ids(["push the block", "put the red block on the green plate", "push the block", ""])
    text_BD = encoder(ids_BL)
    torch.testing.assert_close(text_BD[0], text_BD[2])
    torch.testing.assert_close(encoder(ids_BL[1:2])[0], text_BD[1])
    torch.testing.assert_close(encoder(ids_BL[:1, :3])[0], text_BD[0])
    assert torch.isfinite(text_BD).all(), "no words is a valid instruction"
