"""What a person can do with a robot."""

import re

import pytest

from wovr.serve import app
from wovr.serve.controls import controls_of


@pytest.mark.parametrize("action_dim", [2, 3, 4, 7, 8, 14])
def test_no_key_has_two_meanings(action_dim):
    script = (app.PAGE / "play.js").read_text()
    (table,) = re.findall(r"const once = \{\n(.*?)\n  \};", script, re.DOTALL)
    of_the_page = re.findall(r'^ +"?([^":]+)"?:', table, re.MULTILINE)
    assert {" ", "r", "f", "k", "p", "1"} <= set(of_the_page)
    keys = [key for control in controls_of(action_dim) for key in control.keys] + of_the_page
    assert len(keys) == len(set(keys)), sorted(keys)
