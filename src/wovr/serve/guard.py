"""Who may connect. A page on the web can make a browser talk to this machine; it shall get no answer.

On loopback the server answers to loopback's own names alone, so that a foreign name that was rebound to 127.0.0.1 finds
nothing; elsewhere it asks for a token that no other page can know. A websocket must come from the server's own page
either way, since browsers open them across sites.
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Guard:
    """What a server that is bound to one address asks of those who come."""

    token: str
    """Empty on loopback."""

    @classmethod
    def of(cls, host: str) -> Guard:
        return cls("" if is_loopback(host) else secrets.token_urlsafe(24))

    def refuses(self, host: str | None, token: str | None) -> str:
        """Why a request with this Host header and token is refused; nothing where it is not."""
        if self.token:
            given = secrets.compare_digest((token or "").encode(), self.token.encode())
            return "" if given else "the token is missing or wrong; take the address that `wovr play` printed"
        try:
            name = urlsplit(f"//{host or ''}").hostname or ""
        except ValueError:  # brackets that enclose no address
            name = ""
        return "" if is_loopback(name) else "this server answers on loopback alone, as localhost or 127.0.0.1"

    def refuses_socket(self, host: str | None, origin: str | None, token: str | None) -> str:
        """The same for a websocket, which must come from a page of this server."""
        if not origin or not host or origin.lower().partition("://")[2] != host.lower():
            return "a websocket is for the server's own page"
        return self.refuses(host, token)
