"""What a request may weigh, and from where it may come. Pure ASGI: no copy, no buffering.

A body is at most 1 MiB, except an archive that is streamed. A name in a path is one segment: what
is decoded after that must not choose another route. A browser is refused: the socket is
local, and a page that reaches it through a proxy has no business here.
"""

from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofold.api.replies import error_reply
from twofold.errors import Forbidden, InvalidInput, NotFound, TwofoldError

BODY_LIMIT_BYTES = 1 << 20
HEADER_LIMIT_BYTES = 32 << 10
_HOSTS = (b"", b"localhost", b"twofold", b"127.0.0.1")


class TooLargeError(Exception):
    """Ends the reading of a body that is too long; never seen outside."""


class Limits:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await error_reply(refusal)(scope, receive, send)
            return
        if _is_stream(scope):
            await self._app(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > BODY_LIMIT_BYTES:
                    raise TooLargeError
            return message

        async def unless_too_large(message: Message) -> None:
            # The framework turns our exception into an answer of its own: ours goes out instead.
            if taken <= BODY_LIMIT_BYTES:
                await send(message)

        await self._app(scope, bounded, unless_too_large)
        if taken > BODY_LIMIT_BYTES:
            await error_reply(_too_large())(scope, receive, send)

    def _refusal(self, scope: Scope) -> TwofoldError | None:
        for name, value in scope["headers"]:
            if name == b"origin":
                return Forbidden(
                    "requests from web pages are refused", hint="use the CLI or the SDK"
                )
            if name == b"host" and value.partition(b":")[0].lower() not in _HOSTS:
                return Forbidden(
                    f"host {value[:80].decode('latin-1')!r} is not served here",
                    hint="Host: localhost",
                )
            if name == b"content-length" and not _is_stream(scope):
                if not value.isdigit() or int(value[:20]) > BODY_LIMIT_BYTES:
                    return _too_large()
        return _bad_name(scope)


def _bad_name(scope: Scope) -> TwofoldError | None:
    """Routes are chosen by the decoded path, where the ``%2F`` of a name looks like a separator:
    removing instance ``a%2Fsnapshots%2Fb`` would remove a snapshot. Only names of images (and
    systems) have slashes, and their routes take all that follows."""
    segments: list[bytes] = (scope.get("raw_path") or b"").split(b"/")
    for segment in segments[3:]:
        if not segment:
            return InvalidInput("the name is empty", hint="twofold list --all")
        if b"%2f" in segment.lower() and segments[2] not in (b"images", b"os"):
            return NotFound(
                f"{unquote(segment.decode('latin-1'))[:80]!r} is no name: it has a slash",
                hint="twofold list --all",
            )
    return None


def _is_stream(scope: Scope) -> bool:
    return bool(scope["method"] == "PUT" and scope["path"].endswith("/archive"))


def _too_large() -> InvalidInput:
    return InvalidInput(f"the body is larger than {BODY_LIMIT_BYTES >> 20} MiB", hint="send less")
