"""The page in a browser, over a toy run: keys move the gripper, the policy drives, worlds switch, two look on."""

import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.stages.prepared import prepare

LOOK = "canvas => canvas.toDataURL()"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("play") / "toy"
    prepare(path)
    return path


def serve(run: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The command as people start it, and the address that it prints."""
    command = [sys.executable, "-m", "wovr_cli", "play", str(run), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, (line, process.communicate())
    return process, found[0]


def end(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does; it must leave nothing behind and say nothing."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), (out, err)


@pytest.fixture(scope="module")
def address(run: Path):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    process, address = serve(run)
    yield address
    end(process)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before, "play writes nothing"


@pytest.fixture
def play(page: Page, address: str) -> Page:
    page.goto(address)
    expect(page.locator("#seat")).to_have_text("You drive.")
    page.get_by_role("radio", name="World model").click()
    page.keyboard.press("f")
    expect(page.locator("#depth")).to_have_text("0 steps")
    return page


def picture(page: Page, world: str) -> str:
    return str(page.locator(f"[data-world={world}] canvas").evaluate(LOOK))


def hand_x(page: Page) -> float:
    """Mean column of the simulator's darkest pixels: its gripper, which is the one dark thing on the table."""
    return float(
        page.locator("[data-world=true] canvas").evaluate(
            """canvas => {
                const {data, width} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                const dark = [];
                for (let i = 0; i < data.length; i += 4)
                    if (Math.max(data[i], data[i + 1], data[i + 2]) < 80) dark.push((i / 4) % width);
                return dark.reduce((sum, x) => sum + x, 0) / dark.length;
            }"""
        )
    )


def hold(page: Page, key: str, steps: int) -> None:
    """Until the world is so many steps further."""
    depth = int(page.inner_text("#depth").split()[0])
    page.keyboard.down(key)
    page.wait_for_function("d => parseInt(document.getElementById('depth').textContent) >= d", arg=depth + steps)
    page.keyboard.up(key)


def rest(page: Page) -> str:
    """The depth once the world stands still: a step may be on its way when a key is let go."""
    depth = ""
    while depth != page.inner_text("#depth"):
        depth = page.inner_text("#depth")
        page.wait_for_timeout(1000)
    return depth


def test_keys_move_the_gripper_in_both_worlds(play: Page) -> None:
    play.get_by_role("radio", name="Both").click()
    expect(play.locator("#panes.both")).to_be_visible()
    before = picture(play, "imagined")
    middle = hand_x(play)
    hold(play, "ArrowLeft", 4)
    left = hand_x(play)
    hold(play, "d", 8)
    assert left < middle - 6 and hand_x(play) > left + 12, "three pixels a step"
    assert picture(play, "imagined") != before
    assert re.fullmatch(r"\d+ ms", play.inner_text("#latency"))
    assert re.fullmatch(r"[\d.]+ dB", play.inner_text("#gap"))


def test_the_world_waits_and_the_gripper_closes(play: Page) -> None:
    play.keyboard.press("Space")
    expect(play.locator("#gripper")).to_have_text("closed")
    expect(play.locator("#depth")).to_have_text("4 steps")
    expect(play.locator("#grip")).to_have_text("Open gripper")
    play.wait_for_timeout(500)
    expect(play.locator("#depth")).to_have_text("4 steps")


def test_a_key_is_let_go_whatever_it_is_called_by_then(play: Page) -> None:
    hold_wait = play.locator("[data-hold=wait]")
    play.keyboard.down(".")
    expect(hold_wait).to_have_class("held")
    play.keyboard.down("Shift")
    play.keyboard.up(">")  # of the same key
    expect(hold_wait).not_to_have_class("held")
    play.keyboard.up("Shift")
    play.keyboard.down("ArrowLeft")
    play.evaluate("dispatchEvent(new Event('blur'))")
    expect(play.locator("#pad .held")).to_have_count(0)
    rest(play)
    play.keyboard.up("ArrowLeft")


def test_a_button_of_the_pad_is_pressed_from_the_keyboard(play: Page) -> None:
    before = int(rest(play).split()[0])
    play.get_by_role("button", name="left", exact=True).focus()
    play.keyboard.press("Enter")
    expect(play.locator("#depth")).to_have_text(re.compile(rf"^{before + 1} step"))
    expect(play.locator("#pad .held")).to_have_count(0)


def test_the_slider_keeps_its_keys(play: Page) -> None:
    depth, speed = rest(play), play.locator("#speed")
    before = int(speed.input_value())
    speed.focus()
    play.keyboard.press("ArrowRight")
    play.keyboard.press("ArrowRight")
    expect(play.locator("#pace")).to_have_text(f"{before + 2} steps/s")
    speed.fill(str(before))
    speed.dispatch_event("pointerup")
    assert rest(play) == depth
    hold(play, "ArrowRight", 1)


def test_the_policy_drives_until_a_key_takes_over(play: Page) -> None:
    button = play.get_by_role("button", name="Base")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    play.wait_for_function("() => parseInt(document.getElementById('depth').textContent) >= 3")
    hold(play, "ArrowUp", 2)
    expect(button).to_have_attribute("aria-pressed", "false")


def test_worlds_switch_with_the_same_actions(play: Page) -> None:
    hold(play, "ArrowRight", 5)
    depth = rest(play)
    play.keyboard.press("3")
    expect(play.locator("[data-world=true]")).to_be_visible()
    expect(play.locator("[data-world=imagined]")).to_be_hidden()
    expect(play.locator("#depth")).to_have_text(depth)
    moved = hand_x(play)
    play.keyboard.press("r")
    expect(play.locator("#depth")).to_have_text("0 steps")
    assert moved > hand_x(play) + 6, "the simulator had done what was done in imagination"


def test_starts_come_from_the_gallery(play: Page) -> None:
    play.get_by_text("Choose from the gallery").click()
    before = picture(play, "imagined")
    last = play.locator("[data-start]").last
    last.click()
    expect(last).to_have_attribute("aria-current", "true")
    assert picture(play, "imagined") != before
    assert play.locator("#gallery img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64


def test_touch_drives(browser: Browser, address: str) -> None:
    phone = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.goto(address)
    expect(phone.locator("#seat")).to_have_text("You drive.")
    phone.get_by_role("button", name="First frame").tap()
    phone.get_by_role("button", name="left").tap()
    phone.wait_for_function("() => parseInt(document.getElementById('depth').textContent) >= 1")
    assert phone.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out"
    phone.close()


def test_two_pages_at_once(play: Page, browser: Browser, address: str) -> None:
    other = browser.new_page()
    other.goto(address)
    expect(other.locator("#seat")).to_have_text("You look on; somebody else drives.")
    expect(play.locator("#seat")).to_have_text("You drive; 1 other looks on.")
    hold(play, "ArrowDown", 3)
    expect(other.locator("#depth")).to_have_text(rest(play))
    assert picture(other, "imagined") == picture(play, "imagined")
    play.keyboard.down("ArrowDown")
    expect(play.locator("#pad .held")).to_have_count(1)
    other.get_by_role("button", name="Take the controls").click()
    expect(play.locator("#pad .held")).to_have_count(0)
    play.keyboard.up("ArrowDown")
    expect(play.locator("#seat")).to_have_text("You look on; somebody else drives.")
    hold(other, "ArrowUp", 2)
    expect(play.locator("#depth")).to_have_text(rest(other))
    other.close()
    expect(play.locator("#seat")).to_have_text("You drive.")


def test_an_interrupt_ends_it_while_somebody_plays(page: Page, run: Path) -> None:
    process, address = serve(run, "--seed", "3")
    page.goto(address)
    expect(page.locator("#seat")).to_have_text("You drive.")
    page.keyboard.down("ArrowLeft")
    page.wait_for_function("() => parseInt(document.getElementById('depth').textContent) >= 2")
    end(process)
    expect(page.locator("#seat")).to_contain_text("Not connected")
    expect(page.get_by_role("button", name="Reload")).to_be_visible()


def test_elsewhere_the_printed_address_holds_a_token(page: Page, run: Path) -> None:
    process, address = serve(run, "--host", "0.0.0.0")
    assert "?token=" in address
    local = address.replace("0.0.0.0", "127.0.0.1")
    page.goto(local)
    expect(page.locator("#seat")).to_have_text("You drive.")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(local.split("?")[0])
    end(process)


def test_a_run_of_recordings_says_why_there_is_no_simulator(page: Page, run: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    shutil.copytree(run, recorded)
    config = (recorded / "config.yaml").read_text()
    section = re.search(r"simulator:\n(  .*\n)+", config)
    assert section
    simulator = "simulator:\n  kind: recorded\n  image_size: 64\n  horizon: 32\n"
    (recorded / "config.yaml").write_text(config.replace(section[0], simulator))
    process, address = serve(recorded)
    page.goto(address)
    expect(page.locator("#missing")).to_contain_text("recordings of a robot that no simulator stands for")
    expect(page.get_by_role("radio", name="Both")).to_be_disabled()
    hold(page, "ArrowLeft", 2)
    end(process)
