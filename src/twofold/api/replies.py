"""How answers look: JSON made once, errors in one shape, operations as lines or as one result.

Responses are built directly: what the daemon made itself needs no second validation.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from twofold.errors import InvalidInput, NotFound, TwofoldError, Unavailable
from twofold.instance import names
from twofold.model.instance import NAME_PATTERN
from twofold.operations import Operation
from twofold.operations.operation import name_in_hint, unexpected

T = TypeVar("T")

NDJSON = "application/x-ndjson"
SHAPES = "/openapi.json"  # where requests are described
_VALUE_LIMIT = 120

log = logging.getLogger("twofold.api")


def encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def reply(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")


def raw_reply(data: bytes, status: int = 200) -> Response:
    """JSON that exists as bytes already."""
    return Response(data, status, media_type="application/json")


def error_reply(error: TwofoldError) -> Response:
    return reply({"error": error.to_dict()}, error.http_status)


async def operation_reply(
    request: Request,
    operation: Operation,
    *,
    status: int = 200,
    cancel_when_gone: bool = False,
    shape: Callable[[Any], bytes] = encode,
) -> Response:
    """The operation's events as they come, or its result alone, as the client accepts it.

    A client that leaves does not cancel its operation, unless it holds the other end of the
    payload's stdio (``cancel_when_gone``): then nobody else could ever use what is being made.
    """
    # Its work has not begun: it does with the next turn of the event loop.
    operation.subject = operation.subject or _subject(request)
    if NDJSON in request.headers.get("accept", ""):
        lines = _lines(operation, cancel_when_gone)
        return StreamingResponse(lines, status, media_type=NDJSON)
    result = await operation.wait()
    if result is None:
        return Response(status_code=204)
    return raw_reply(shape(result), status)


class StreamReply(StreamingResponse):
    """A stream that breaks off where its source fails, without an end, so that nobody takes a part
    for the whole. Its status has long been sent: the cause goes to the log."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except TwofoldError as error:
            log.warning("a stream of %s breaks off: %s", self.media_type, error.message)


async def _lines(operation: Operation, cancel_when_gone: bool) -> AsyncIterator[bytes]:
    try:
        async with aclosing(operation.events()) as events:
            async for event in events:
                yield encode(event) + b"\n"
    finally:
        if cancel_when_gone and not operation.ended:
            operation.cancel()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; it is cancelled when nobody waits for it any more."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Unavailable("the client has gone", hint="ask again")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _subject(request: Request) -> str:
    """The name in the path, as the client wrote it."""
    return str(request.path_params.get("name", ""))


# -- errors -----------------------------------------------------------------------------------


async def on_twofold_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TwofoldError)
    name_in_hint(error, _subject(request))
    return error_reply(error)


async def on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    ours = invalid_input(list(error.errors()))
    name_in_hint(ours, _subject(request))
    return error_reply(ours)


async def on_http_error(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals in our shape."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        ours = _wrong_request(NotFound, f"no such path {path!r}")
    else:
        ours = _wrong_request(InvalidInput, f"{request.method} {path!r}: {error.detail}")
    return reply({"error": ours.to_dict()}, error.status_code)


async def on_bug(_: Request, error: Exception) -> Response:
    return error_reply(unexpected(error))


def invalid_input(problems: list[Any]) -> TwofoldError:
    """Pydantic's list of problems as one line: the first, with its field and value."""
    first = problems[0] if problems else {}
    location = [str(part) for part in first.get("loc", ()) if part not in ("body", "query")]
    field = ".".join(part for part in location if part != "path") or "the body"
    value = repr(first.get("input"))
    if len(value) > _VALUE_LIMIT:
        value = f"{value[:_VALUE_LIMIT]}…"
    text = str(first.get("msg", "is not valid")).replace("\n", " ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first.get("ctx", {}).get("pattern") == NAME_PATTERN:
        option = "--name " if field == "spec.name" else "twofold snapshot create NAME "
        return names.no_name(str(first.get("input")), option=option)
    message = f"{field}: {text[:1].lower()}{text[1:]}, not {value}{more}"
    if first.get("type") == "extra_forbidden":
        message = f"{field}: there is no such field{more}"
    elif first.get("type") == "missing":
        message = f"{field} is missing{more}"
    elif first.get("type") == "json_invalid":
        message = f"the body is not JSON: {first.get('ctx', {}).get('error', text)}"
    return _wrong_request(InvalidInput, message)


def _wrong_request(kind: type[TwofoldError], message: str) -> TwofoldError:
    """Of who writes requests: a command that wrote this one has another hint for who typed it."""
    return kind(message, hint=f"the shapes are in GET {SHAPES}", details={"shapes": SHAPES})
