"""The web side: who may come, what is understood, and who drives."""

import json
import struct

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.serve.sessions import make_driver, make_session
from wovr.serve.app import Room, make_app
from wovr.serve.guard import Guard, is_loopback
from wovr.serve.viewers import MOST, Viewer

HERE = "http://localhost"


@pytest.fixture
def room():
    return Room("toy", make_session(missing="no simulator <here>"), make_driver(), failed=lambda: None)


@pytest.fixture
def client(room):
    with TestClient(make_app(room, Guard.of("127.0.0.1")), base_url=HERE) as client:
        yield client


def connect(client, origin=HERE, address="/ws", host="localhost"):
    headers = {"host": host} | ({"origin": origin} if origin else {})
    return client.websocket_connect(address, headers=headers)


def until(socket, kind):
    """The next message of a kind; frames are `frame`."""
    while True:
        message = socket.receive()
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message["code"])
        if "bytes" in message and message["bytes"] is not None:
            if kind == "frame":
                (length,) = struct.unpack("<I", message["bytes"][:4])
                return json.loads(message["bytes"][4 : 4 + length])
        elif json.loads(message["text"])["type"] == kind:
            return json.loads(message["text"])


def say(socket, **message):
    socket.send_text(json.dumps(message))


def test_the_page_its_files_and_the_gallery(client):
    page = client.get("/")
    assert page.status_code == 200 and "play.js" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("play.js", "curve.js", "frames.js", "hands.js", "play.css", "icon.svg"):
        assert client.get(f"/page/{name}").status_code == 200, name
    picture = client.get("/starts/1.webp")
    assert picture.headers["content-type"] == "image/webp" and picture.content[:4] == b"RIFF"
    assert client.get("/starts/9.webp").text == "start: expected 0 to 2, found 9\n"
    assert client.get("/docs").status_code == 404
    for path in ("%2e%2e/app.py", "..%2fapp.py", "%2fetc/passwd"):
        assert client.get(f"/page/{path}").status_code == 404, path


def test_a_viewer_is_greeted_and_sees_the_scene(client):
    with connect(client) as socket:
        hello = until(socket, "hello")
        assert hello["run"] == "toy" and len(hello["starts"]) == 3 and hello["policies"] == ["base", "broken"]
        assert {"left", "right", "up", "down", "wait"} == {control["name"] for control in hello["controls"]}
        scene = until(socket, "scene")
        assert scene["missing"]["true"] == "no simulator <here>" and scene["shown"] == ["imagined"]
        assert until(socket, "frame")["depth"] == 0


def test_keys_become_frames(client):
    with connect(client) as socket:
        say(socket, type="keys", held=["right"], n=1)
        say(socket, type="keys", held=[], n=2)
        while until(socket, "frame")["depth"] != 1:
            pass


@pytest.mark.parametrize(
    "origin",
    [None, "null", "http://evil.example", "http://localhost:1", "http://localhost.evil.example", "file://", "http://["],
)
def test_a_websocket_from_another_page_is_refused(client, room, origin):
    with pytest.raises(WebSocketDisconnect), connect(client, origin):
        pass
    assert len(room.viewers) == 0


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.7", "", "[", "[::1"])
def test_a_foreign_name_for_this_machine_is_refused(client, host):
    found = client.get("/", headers={"host": host})
    assert found.status_code == 403 and "loopback alone" in found.text
    assert client.get("/starts/0.webp", headers={"host": host}).status_code == 403
    with pytest.raises(WebSocketDisconnect), connect(client, f"http://{host}", host=host):
        pass


@pytest.mark.parametrize("host", ["localhost:8420", "LocalHost:8420", "127.0.0.1", "[::1]:80"])
def test_loopbacks_own_names_are_welcome(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200
    with connect(client, f"http://{host}", host=host) as socket:
        until(socket, "hello")


def test_elsewhere_a_token_is_asked_for(room):
    guard, name = Guard.of("0.0.0.0"), "http://robot.example:8420"
    assert len(guard.token) >= 32 and Guard.of("0.0.0.0").token != guard.token
    with TestClient(make_app(room, guard), base_url=name) as client:
        for query in ("", "?token=", "?token=wrong", f"?token={guard.token[:-1]}", "?token=é"):
            found = client.get(f"/{query}")
            assert found.status_code == 403 and "token is missing or wrong" in found.text
            assert client.get(f"/starts/0.webp{query}").status_code == 403
            with pytest.raises(WebSocketDisconnect), connect(client, name, f"/ws{query}", "robot.example:8420"):
                pass
        assert client.get("/starts/0.webp", headers={"host": "robot.example/page/?"}).status_code == 403
        assert client.get(f"/?token={guard.token}").status_code == 200
        assert client.get(f"/starts/0.webp?token={guard.token}").status_code == 200
        with (
            pytest.raises(WebSocketDisconnect),
            connect(client, HERE, f"/ws?token={guard.token}", "robot.example:8420"),
        ):
            pass
        with connect(client, name, f"/ws?token={guard.token}", "robot.example:8420") as socket:
            until(socket, "hello")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_what_loopback_is(host, expected):
    assert is_loopback(host) == expected and bool(Guard.of(host).token) != expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "invalid JSON"),
        ("{", "invalid JSON"),
        ("[]", "message"),
        ('{"type": "jump"}', "'jump'"),
        ('{"type": "keys"}', "held"),
        ('{"type": "keys", "held": ["up"], "n": -1}', "greater than or equal to 0"),
        ('{"type": "keys", "held": ["jump"]}', "found 'jump'"),
        ('{"type": "keys", "held": "up"}', "held"),
        ('{"type": "reset", "start": 3}', "expected 0 to 2, found 3"),
        ('{"type": "reset", "start": "anywhere"}', "anywhere"),
        ('{"type": "worlds", "shown": []}', "shown"),
        ('{"type": "worlds", "shown": ["true"]}', "no simulator <here>"),
        ('{"type": "policy", "name": "best"}', "expected base, broken"),
        ('{"type": "speed", "steps_per_second": 1e9}', "less than or equal to 30"),
        ('{"type": "speed", "steps_per_second": NaN}', "steps_per_second"),
        ('{"type": "drive", "why": 1}', "why"),
        ('{"type": "keys", "held": [' + '"up",' * 2000 + '"up"]}', "at most 4096 characters"),
    ],
)
def test_a_bad_message_is_answered_and_does_no_harm(client, text, said):
    with connect(client) as socket:
        socket.send_text(text)
        found = until(socket, "error")["text"]
        assert said.lower() in found.lower() and "\n" not in found
        say(socket, type="keys", held=["wait"], n=1)
        while until(socket, "frame")["depth"] != 1:
            pass


def test_bytes_are_no_message(client):
    with connect(client) as socket:
        socket.send_bytes(b"\x00" * 64)
        assert "invalid JSON" in until(socket, "error")["text"]


def test_one_drives_and_the_others_look_on(client, room):
    with connect(client) as first, connect(client) as second:
        assert until(first, "seat")["driving"] and not until(second, "seat")["driving"]
        say(second, type="keys", held=["right"], n=1)
        assert "somebody else drives" in until(second, "error")["text"]
        say(first, type="keys", held=["right"], n=1)
        while until(second, "frame")["depth"] < 2:  # sees what the first one does
            pass
        say(second, type="drive")
        while not (seat := until(second, "seat"))["driving"]:
            pass
        assert seat["viewers"] == 2
        while until(first, "seat")["driving"]:
            pass
        say(first, type="reset", start=1)
        assert "somebody else drives" in until(first, "error")["text"]
        assert not room.player._keys.held, "what the former driver held is let go"


def test_the_next_drives_when_the_driver_leaves(client, room):
    with connect(client) as third:
        with connect(client) as first:
            say(first, type="drive")
            while not until(first, "seat")["driving"]:
                pass
            say(first, type="keys", held=["right"], n=1)
            while until(third, "frame")["depth"] < 1:
                pass
            assert room.player._keys.held
        while not (seat := until(third, "seat"))["driving"]:
            pass
        assert seat["viewers"] == 1 and not room.player._keys.held, "what the driver held is let go"
    with connect(client) as anew:
        assert until(anew, "seat")["driving"]


def test_too_many_viewers_are_told_so(client):
    from contextlib import ExitStack

    with ExitStack() as stack:
        for _ in range(MOST):
            until(stack.enter_context(connect(client)), "hello")
        extra = stack.enter_context(connect(client))
        assert f"{MOST} viewers" in extra.receive_json()["text"]
        with pytest.raises(WebSocketDisconnect) as closed:
            extra.receive_text()
        assert closed.value.code == 1013


@pytest.mark.anyio
async def test_a_slow_viewer_keeps_no_more_than_a_chunk_of_frames():
    viewer = Viewer(1, frames=8)
    for n in range(100):
        viewer.frame(bytes([n]))
        viewer.text("error", {"text": str(n)})
    assert json.loads(await viewer.next())["text"] == "99"
    assert [await viewer.next() for _ in range(8)] == [bytes([n]) for n in range(92, 100)]
    viewer.frame(b"old")
    viewer.text("scene", {})
    viewer.frame(b"new")
    assert json.loads(await viewer.next())["type"] == "scene" and await viewer.next() == b"new"


@pytest.fixture
def anyio_backend():
    return "asyncio"
