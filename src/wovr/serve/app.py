"""The web side: one page, pictures of the starts, and a websocket for each viewer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles

from wovr.core.errors import UserError
from wovr.kir.mine import FIRST_FRAME
from wovr.serve.guard import Guard
from wovr.serve.messages import MAX_BYTES, Drive, Keys, parse, picture
from wovr.serve.player import Driver, Player
from wovr.serve.session import LONGEST, Session
from wovr.serve.viewers import MOST, Viewer, Viewers

PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
REFUSED, CROWDED = 1008, 1013
"""Codes with which a websocket is closed."""


class Room:
    """The session with its player, and those who look on."""

    def __init__(self, name: str, session: Session, driver: Driver, failed: Callable[[], None]) -> None:
        self.name, self.session, self.driver, self._failed = name, session, driver, failed
        self.viewers = Viewers(session.chunk_length)
        self.player = Player(session, driver, self._publish)
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def open(self, app: FastAPI) -> AsyncIterator[None]:
        """While the server runs."""
        self._loop = asyncio.get_running_loop()
        self.player.start()
        yield
        await asyncio.to_thread(self.player.stop)

    def greeting(self) -> dict[str, Any]:
        """What a page needs once."""
        session = self.session
        controls = [{"name": one.name, "label": one.label, "keys": one.keys} for one in self.player.controls]
        starts = [
            {"kind": one.imagined.reason, "instruction": one.imagined.instruction, "step": one.imagined.step}
            for one in session.starts
        ]
        rules = {world: {"threshold": rule.threshold, "hold": rule.hold} for world, rule in session.rules.items()}
        image = session.starts[0].imagined.reference_HWC.shape
        return {
            "run": self.name,
            "controls": controls,
            "starts": starts,
            "first_frame": FIRST_FRAME,
            "policies": list(self.driver.policies),
            "rules": rules,
            "chunk_length": session.chunk_length,
            "horizon": self.driver.horizon,
            "longest": LONGEST,
            "image": image[:2],
        }

    def _publish(self, kind: str, content: Any) -> None:
        """From the player's thread."""
        assert self._loop is not None
        tell = self._failed if kind == "failed" else lambda: self.viewers.publish(kind, content)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(tell)

    def obey(self, viewer: Viewer, text: str) -> None:
        """Do what a page says. UserError where it may not, or where it says nothing that is known."""
        message = parse(text)
        if isinstance(message, Drive):
            if self.viewers.driver != viewer.number:
                self.player.let_go()
            self.viewers.drive(viewer)
        elif self.viewers.driver != viewer.number:
            raise UserError("somebody else drives; take the controls first")
        elif isinstance(message, Keys):
            self.player.hold(message)
        else:
            self.player.ask(message)

    async def serve(self, socket: WebSocket) -> None:
        """One viewer, from its coming to its leaving."""
        viewer = self.viewers.join(self.greeting())
        sender = asyncio.create_task(_send(socket, viewer))
        try:
            self._ask_for_scene(viewer)
            while (message := await socket.receive())["type"] == "websocket.receive":
                text = message.get("text") or ""
                try:
                    if len(text) > MAX_BYTES:
                        raise UserError(f"message: expected at most {MAX_BYTES} characters, found {len(text)}")
                    self.obey(viewer, text)
                except UserError as error:
                    viewer.text("error", {"text": str(error)})
        finally:
            sender.cancel()
            if self.viewers.leave(viewer):
                self.player.let_go()

    def _ask_for_scene(self, viewer: Viewer) -> None:
        try:
            self.player.ask(None)
        except UserError as error:
            viewer.text("error", {"text": str(error)})


async def _send(socket: WebSocket, viewer: Viewer) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # gone while something was on its way
        while True:
            found = await viewer.next()
            await (socket.send_text(found) if isinstance(found, str) else socket.send_bytes(found))


def make_app(room: Room, guard: Guard) -> FastAPI:
    """The web application over a room."""
    app = FastAPI(lifespan=room.open, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Any]) -> Response:
        # The files of the page are the same for everybody, and know nothing of the run. (`request.url` is made with
        # the Host header, and in older versions of starlette its path too.)
        public = request.scope["path"].startswith("/page/")
        reason = guard.refuses(
            request.headers.get("host"), guard.token if public else request.query_params.get("token")
        )
        response: Response = PlainTextResponse(reason + "\n", 403) if reason else await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/starts/{number}.webp")
    def start(number: int) -> Response:
        if not 0 <= number < len(room.session.starts):
            return PlainTextResponse(f"start: expected 0 to {len(room.session.starts) - 1}, found {number}\n", 404)
        return Response(picture(room.session.starts[number].imagined.memory_MHWC[-1]), media_type="image/webp")

    @app.websocket("/ws")
    async def socket(socket: WebSocket) -> None:
        headers = socket.headers
        token = socket.query_params.get("token")
        if guard.refuses_socket(headers.get("host"), headers.get("origin"), token):
            await socket.close(REFUSED)  # before it is accepted: answered by 403
            return
        await socket.accept()
        if room.viewers.full:
            await socket.send_json({"type": "error", "text": f"{MOST} viewers are here already; try again later"})
            await socket.close(CROWDED)
            return
        await room.serve(socket)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app
