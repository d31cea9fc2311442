"""The report in a browser: the player shows what was recorded, the page asks for nothing and fits every screen."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.stages.reported import SIDE, STEPS, make_replay, report_everything, workplace
from wovr.stages import report


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    report_everything(path)
    return (path / report.REPORT).as_uri()


@pytest.fixture
def opened(page, address):
    """The page, which may load itself and nothing else."""
    asked = []
    page.route("**/*", lambda route: route.continue_() if route.request.url == address else asked.append(route.abort()))
    page.goto(address)
    page.wait_for_selector("#player[data-replay='0']")
    yield page
    assert not asked, "the page asked for something"


def pixels(page, world):
    """What a canvas shows, (height, width, 3)."""
    uri = page.evaluate("world => document.querySelector(`[data-world=${world}]`).toDataURL('image/png')", world)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def step(page):
    """The step that is shown, and the probabilities beside it."""
    where = page.inner_text("[data-where]")
    return where, *(page.inner_text(f"[data-probability={world}]") for world in ("true", "imagined"))


def assert_shows(page, replay, t):
    assert page.inner_text("[data-where]") == f"step {t} of {STEPS}"
    true, imagined = replay.true_THWC[t], replay.imagined_THWC[t]
    np.testing.assert_array_equal(pixels(page, "true"), true)
    np.testing.assert_array_equal(pixels(page, "imagined"), imagined)
    np.testing.assert_array_equal(pixels(page, "difference"), np.abs(true.astype(int) - imagined))


def test_the_player_begins_where_a_world_first_claims_success(opened):
    assert_shows(opened, make_replay(0), 9)  # success completes with action 8, which frame 9 follows
    assert opened.inner_text("[data-flag=true]") == "success at step 9"
    assert opened.inner_text("[data-flag=imagined]") == "not yet"


def test_the_slider_scrubs_frames_and_probabilities(opened):
    slider = opened.locator("#player input[type=range]")
    replay = make_replay(0)
    for t in (0, 5, STEPS):
        slider.fill(str(t))
        assert_shows(opened, replay, t)
    assert step(opened)[1:] == ("100 %", "100 %")
    slider.fill("8")
    expected = [f"{100 * p[7]:.0f} %" for p in (replay.true_probability_T, replay.probability_T)]
    assert list(step(opened)[1:]) == expected
    assert slider.get_attribute("aria-valuetext") == f"step 8 of {STEPS}, true {expected[0]}, imagined {expected[1]}"
    slider.fill("0")
    assert step(opened)[1:] == ("–", "–"), "nothing has been done yet"


def test_dragging_on_the_curve_scrubs(opened):
    opened.locator("#player .curve").scroll_into_view_if_needed()
    box = opened.locator("#player .curve").bounding_box()
    left, right, y = box["x"] + 36, box["x"] + box["width"] - 12, box["y"] + 60
    opened.mouse.move(left + (right - left) * 4 / STEPS, y)
    opened.mouse.down()
    assert_shows(opened, make_replay(0), 4)
    opened.mouse.move(left + (right - left) * 12.3 / STEPS, y, steps=3)
    assert_shows(opened, make_replay(0), 12)
    opened.mouse.up()
    opened.mouse.move(left, y)
    assert_shows(opened, make_replay(0), 12)


def test_keys_move_it(opened):
    opened.locator("#player .curve").click(position={"x": 36, "y": 60})
    on, back = "ArrowRight", "ArrowLeft"
    moves = (([on, on, on, back], 2), (["End", on], STEPS), (["Home"], 0))
    for keys, t in moves:
        for key in keys:
            opened.keyboard.press(key)
        assert opened.inner_text("[data-where]") == f"step {t} of {STEPS}"
    opened.focus("[data-by='1']")
    opened.keyboard.press("Enter")
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("[data-where]") == f"step 2 of {STEPS}"


def test_it_plays_to_the_end_and_pauses(opened):
    opened.locator("#player input[type=range]").fill("0")
    opened.select_option("#player select", "0.25")
    opened.click("#player .play")
    opened.wait_for_selector("[data-where]:not(:has-text('step 0 of'))")
    assert opened.inner_text("#player .play") == "Pause"
    opened.keyboard.press("Space")  # the button has the focus
    assert opened.inner_text("#player .play") == "Play" and step(opened)[0] != f"step {STEPS} of {STEPS}"
    opened.select_option("#player select", "4")
    opened.click("#player .play")
    opened.wait_for_selector(f"[data-where]:has-text('step {STEPS} of')")
    assert opened.inner_text("#player .play") == "Play", "it stops there"


def test_every_replay_can_be_chosen(opened):
    opened.check("#player input[value='1']", force=True)  # the label is what one sees
    opened.wait_for_selector("#player[data-replay='1']")
    assert_shows(opened, make_replay(1), 10)
    assert opened.inner_text("[data-flag=true]") == "never succeeds"
    assert opened.inner_text("[data-flag=imagined]") == "success at step 10"
    opened.focus("#player input[value='1']")
    opened.keyboard.press("ArrowDown")
    opened.wait_for_selector("#player[data-replay='2']")
    assert_shows(opened, make_replay(2), STEPS)


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_screen(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    for details in opened.query_selector_all("details"):
        details.evaluate("one => one.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    panel = opened.locator("canvas[data-world=true]").bounding_box()
    assert panel["width"] == pytest.approx(panel["height"], abs=1) and panel["width"] > SIDE


def luminance(colour):
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


COLOURS = """() => {
  const of = (element, name) => getComputedStyle(element)[name];
  const ink = [...document.querySelectorAll("p, small, th, td, h2, figcaption, .plot svg text, output, .curve text")];
  const lines = [...document.querySelectorAll(".plot svg path[style*='stroke: #']")];
  return {
    paper: of(document.body, "backgroundColor"),
    ink: [...new Set(ink.map((one) => of(one, one.namespaceURI.endsWith("svg") ? "fill" : "color")))],
    lines: [...new Set(lines.map((one) => of(one, "stroke")))],
  };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_in_both_colour_schemes(opened, scheme):
    opened.emulate_media(color_scheme=scheme)
    found = opened.evaluate(COLOURS)
    paper = luminance(found["paper"])
    assert (paper > 0.5) == (scheme == "light")

    def contrast(colour):
        dark, bright = sorted([paper, luminance(colour)])
        return (bright + 0.05) / (dark + 0.05)

    # WCAG 2.1, AA: 4.5 for text, 3 for graphics.
    assert len(found["ink"]) > 3 and min(map(contrast, found["ink"])) >= 4.5, found["ink"]
    assert len(found["lines"]) > 2 and min(map(contrast, found["lines"])) >= 3, found["lines"]


def test_nothing_moves_by_itself(opened):
    opened.emulate_media(reduced_motion="reduce")
    assert opened.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert opened.evaluate("document.getAnimations().length") == 0
    assert opened.inner_text("#player .play") == "Play"


def test_on_paper_it_is_light_and_has_no_controls(opened):
    opened.emulate_media(media="print", color_scheme="dark")
    assert luminance(opened.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
    assert opened.locator("canvas[data-world=imagined]").is_visible()
    for hidden in ("nav", "#player .controls", "#player .list", "#player input[type=range]"):
        assert not opened.locator(hidden).is_visible()


def test_a_page_without_replays_has_no_player_and_no_errors(page, tmp_path):
    with workplace(tmp_path / "run") as place:
        report.run(place)
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto((tmp_path / "run" / report.REPORT).as_uri())
    assert page.locator("#player").count() == 0
    assert page.locator(".missing").count() >= 8
    assert page.evaluate("document.documentElement.scrollWidth") == 390
