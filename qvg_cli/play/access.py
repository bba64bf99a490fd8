"""Who may speak to the server: this machine's own page, or who knows the token.

A page of another site can make a browser speak to 127.0.0.1, under a name that it lets point there. Such a
request has that name in its Host or its Origin, and is refused.
"""

import hmac
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

_OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Lets through what may come in: what knows the token, or what this machine's own page asks."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = refusal(scope, self._token)
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"{reason}\n".encode()})


def refusal(scope: Scope, token: str | None) -> str | None:
    """Why a request is refused; `None` if it is not."""
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    name, colon, port = host.rpartition(":")
    if token is None and (name if colon and port.isdecimal() else host) not in _OWN_NAMES:
        return f"the page is at 127.0.0.1, not at {host!r}"
    if origin and urlsplit(origin).netloc != host:
        return f"a page of {origin!r} may not speak to this one"
    if token is not None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if not hmac.compare_digest(given.encode(), token.encode()):
            return "the URL lacks the token; use the one that qvg play printed"
    return None


def page_address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    query = "" if token is None else f"?key={token}"
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/{query}"
