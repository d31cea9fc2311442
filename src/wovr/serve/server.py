"""`wovr play`: the server around a session, from its port to its end."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from wovr.core.errors import UserError
from wovr.serve.app import Room, make_app
from wovr.serve.guard import Guard
from wovr.serve.load import load_session
from wovr.serve.messages import MAX_BYTES

PATIENCE_S = 3
"""How long viewers get to say goodbye at the end."""


def play(run: Path, host: str, port: int, seed: int, say: Callable[[str], None]) -> None:
    """Serve until the first interrupt. UserError where the run cannot be played or the address not be taken.

    Args:
        run: run folder, which is not written to.
        host: address to listen on; any but loopback's asks viewers for a token.
        port: 0 takes a free one.
        seed: of starts, noise and the policy's draws.
        say: is told where the page is, once it can be opened.
    """
    with _listen(host, port) as listening, load_session(run, seed) as (session, driver):
        server: uvicorn.Server
        guard = Guard.of(host)
        room = Room(run.resolve().name, session, driver, failed=lambda: setattr(server, "should_exit", True))
        config = uvicorn.Config(
            make_app(room, guard),
            log_config=None,
            access_log=False,
            ws_max_size=4 * MAX_BYTES,  # in UTF-8
            ws_per_message_deflate=False,  # pictures are packed
            timeout_graceful_shutdown=PATIENCE_S,
        )
        server = uvicorn.Server(config)
        shown = f"[{host}]" if ":" in host else host
        token = f"?token={guard.token}" if guard.token else ""
        say(f"http://{shown}:{listening.getsockname()[1]}/{token}")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes it on when it is done
            server.run(sockets=[listening])
        if room.player.failure is not None:
            raise room.player.failure


def _listen(host: str, port: int) -> socket.socket:
    """A socket that has its address before anything long begins."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise UserError(f"--host: expected an address of this machine, found {host!r} ({error})") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port: expected a free port, found {port} in use; choose another, 0 for any") from None
        raise UserError(
            f"--host, --port: expected an address to listen on, found {host}:{port} ({error.strerror})"
        ) from None
    return listening
