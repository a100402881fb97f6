"""What goes on inside an instance: exec, logs, files in and out."""

import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from twofold.api.replies import StreamReply, reply, while_connected
from twofold.api.routes.instances import KillRequest, Ticket
from twofold.api.services import services
from twofold.errors import InvalidInput
from twofold.instance.logs import MAX_TAIL, read_console, read_log
from twofold.instance.sessions import ExecRequest
from twofold.model.instance import Argument, Line, Strict

router = APIRouter(tags=["payload"])

MAX_TIMEOUT_S = 24 * 3600.0


class ExecBody(Strict):
    """One of ``ticket`` (stdio parked at the door), ``capture`` and ``detach``."""

    command: list[Argument] = Field(min_length=1, examples=[["cat", "/etc/os-release"]])
    env: list[Argument] = Field(default_factory=list)
    workdir: Line | None = None
    user: Line | None = None
    tty: bool = False
    ticket: Ticket | None = None
    capture: bool = False
    detach: bool = Field(default=False, description="nobody sees what it reads or writes")
    stdin_base64: str = ""
    timeout_s: float = Field(default=60.0, gt=0, le=MAX_TIMEOUT_S)


@router.post("/instances/{name}/exec", summary="Run a command inside")
async def execute(request: Request, name: str, body: ExecBody) -> Response:
    sessions = services(request).instances.sessions
    record = services(request).instances.find(name)
    wanted = ExecRequest(
        command=body.command,
        env=body.env,
        workdir=body.workdir,
        user=body.user,
        tty=body.tty,
    )
    if body.detach and (body.capture or body.ticket):
        raise InvalidInput("detach goes with neither ticket nor capture", hint="leave them out")
    if not body.capture:
        if body.ticket is None and not body.detach:
            raise InvalidInput(
                "exec needs a ticket, capture=true or detach=true", hint='{"capture": true, …}'
            )
        ticket = body.ticket or ""
        return reply({"session": await sessions.execute(record, wanted, ticket=ticket)})
    if body.tty or body.ticket:
        raise InvalidInput("capture goes with neither tty nor ticket", hint="leave them out")
    try:
        stdin = base64.b64decode(body.stdin_base64, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("stdin_base64 is not base64", hint="base64 < FILE") from None
    captured = await while_connected(
        request, sessions.capture(record, wanted, stdin=stdin, timeout_s=body.timeout_s)
    )
    return reply(
        {
            "exit_code": captured.exit_code,
            "stdout_base64": base64.b64encode(captured.stdout).decode(),
            "stderr_base64": base64.b64encode(captured.stderr).decode(),
        }
    )


class AttachBody(Strict):
    ticket: Ticket


@router.post("/instances/{name}/attach", status_code=204, summary="Join the streams of the payload")
async def attach(request: Request, name: str, body: AttachBody) -> Response:
    manager = services(request).instances
    await manager.sessions.attach(manager.find(name), ticket=body.ticket)
    return Response(status_code=204)


@router.post(
    "/instances/{name}/exec/{session}/kill",
    status_code=204,
    summary="Send a signal to a command that exec began",
)
async def kill_session(
    request: Request, name: str, session: Line, body: KillRequest | None = None
) -> Response:
    manager = services(request).instances
    wanted = (body or KillRequest()).signal
    await manager.sessions.signal(manager.find(name), session, wanted)
    return Response(status_code=204)


@router.get("/instances/{name}/logs", summary="Log lines: TIME stdout|stderr F|P CONTENT")
async def logs(
    request: Request,
    name: str,
    follow: bool = False,
    tail: Annotated[int | None, Query(ge=0, le=MAX_TAIL)] = None,
    console: bool = False,
) -> Response:
    house = services(request)
    record = house.instances.find(name)
    directory = house.paths.instance_dir(record.id)
    read = read_console if console else read_log
    lines = await _begun(read(record, directory, follow=follow, tail=tail), wait=not follow)
    return StreamReply(lines, media_type="text/plain; charset=utf-8")


@router.get("/instances/{name}/archive", summary="A path inside as a tar stream")
async def read_archive(request: Request, name: str, path: Line) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    chunks = await _begun(manager.sessions.archive_out(record, path))
    return StreamReply(chunks, media_type="application/x-tar")


@router.put(
    "/instances/{name}/archive", status_code=204, summary="Unpack a tar stream into a directory"
)
async def write_archive(request: Request, name: str, path: Line) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    await manager.sessions.archive_in(record, path, request.stream())
    return Response(status_code=204)


async def _begun(
    chunks: AsyncGenerator[bytes, None], *, wait: bool = True
) -> AsyncGenerator[bytes, None]:
    """The same stream, its first chunk fetched: a failure is then still a status, not a cut."""
    if not wait:
        return chunks
    first = await anext(chunks, b"")

    async def whole() -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return whole()
