"""The SDK for asyncio; import it from ``twofold.client.sdk``, where its twin is described."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from twofold.client.broken import broken_off
from twofold.client.launch import ensure_daemon
from twofold.client.shapes import (
    BASE,
    NDJSON,
    Completed,
    Events,
    OnEvent,
    at,
    captured,
    change_body,
    detached_body,
    error_of,
    exec_body,
    gone,
    plug_body,
    spec_body,
    split_log,
    timeout_body,
    unplug_body,
)
from twofold.errors import Unavailable
from twofold.model.exposure import Exposure
from twofold.model.guest_os import OsDetail, OsSummary
from twofold.model.image import Image
from twofold.model.instance import Instance, Volume
from twofold.model.paths import Paths
from twofold.model.screen import Pointed, Typed
from twofold.model.snapshot import Snapshot
from twofold.model.template import Template, TemplateLimit
from twofold.model.usage import ProcessInfo, Use


class AsyncTwofold:
    """``Twofold`` for asyncio:

    async with AsyncTwofold() as twofold:
        done = await twofold.run("debian", ["true"])
    """

    def __init__(self, root: str | None = None, *, launch: bool = True) -> None:
        self.paths = Paths(root)
        self._launch = launch
        transport = httpx.AsyncHTTPTransport(uds=self.paths.api_socket)
        self._http = httpx.AsyncClient(transport=transport, base_url=BASE, timeout=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def run(
        self, image: str, command: Sequence[str] | None = None, **fields: Any
    ) -> Completed:
        async with await self.run_detached(image, command, **fields) as box:
            exit_code = await box.wait()
            stdout, stderr = split_log(await box.logs())
        return Completed(exit_code=exit_code, stdout=stdout, stderr=stderr)

    async def run_detached(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        on_event: OnEvent | None = None,
        **fields: Any,
    ) -> "AsyncBox":
        body = {"spec": spec_body(image, command, fields), "start": True}
        return AsyncBox(self, await self._operate("POST", at("instances"), body, on_event))

    async def create(
        self, image: str, command: Sequence[str] | None = None, **fields: Any
    ) -> "AsyncBox":
        body = {"spec": spec_body(image, command, fields), "start": False}
        return AsyncBox(self, await self._operate("POST", at("instances"), body, None))

    async def instances(self, *, everything: bool = True) -> list[Instance]:
        query = "?all=true" if everything else ""
        found = await self._call("GET", at("instances") + query)
        return [Instance.model_validate(item) for item in found]

    async def instance(self, name: str) -> "AsyncBox":
        return AsyncBox(self, await self._call("GET", at("instances", name)))

    async def usage(self) -> list[Use]:
        return [Use.model_validate(item) for item in await self._call("GET", at("usage"))]

    async def images(self) -> list[Image]:
        found = await self._call("GET", at("images"))
        return [Image.model_validate(item) for item in found]

    async def image(self, name: str) -> Image:
        return Image.model_validate(await self._call("GET", at("images", name)))

    async def build_image(
        self, name: str, *, on_event: OnEvent | None = None, **fields: Any
    ) -> Image:
        body = {"name": name, **fields}
        found = await self._operate("POST", at("images", "build"), body, on_event)
        return Image.model_validate(found)

    async def import_image(
        self,
        path: str,
        name: str | None = None,
        *,
        disk_format: str | None = None,
        arch: str | None = None,
        on_event: OnEvent | None = None,
    ) -> Image:
        """``path`` is on the daemon's host; ``disk_format`` and ``arch`` are of a disk or medium:
        None, and its content tells."""
        body = {"path": path, "name": name, "format": disk_format, "arch": arch}
        found = await self._operate("POST", at("images", "import"), body, on_event)
        return Image.model_validate(found)

    async def verify_image(self, name: str, *, on_event: OnEvent | None = None) -> Image:
        """Have all of a disk read and compared with its checksum. Raises Corrupt."""
        found = await self._operate("POST", at("images", name, "verify"), None, on_event)
        return Image.model_validate(found)

    async def remove_image(self, name: str, *, force: bool = False) -> None:
        await self._call("DELETE", at("images", name) + ("?force=true" if force else ""))

    async def templates(self) -> list[Template]:
        """What virtual machines are forked from; last used first."""
        found = await self._call("GET", at("templates"))
        return [Template.model_validate(item) for item in found]

    async def remove_template(self, key: str) -> int:
        """Bytes freed. Running forks of it go on; the next start of its kind makes another."""
        return int((await self._call("DELETE", at("templates", key)))["size_bytes"])

    async def template_limit(self, limit_bytes: int | None = None) -> TemplateLimit:
        """What all of them may take on the disk, and take; with a number it is set first."""
        method, body = "GET", None
        if limit_bytes is not None:
            method, body = "PUT", {"limit_bytes": limit_bytes}
        found = await self._call(method, at("template-limit"), body)
        return TemplateLimit.model_validate(found)

    async def systems(self, pattern: str = "") -> list[OsSummary]:
        """The operating systems that are known; ``pattern``: a part of id or name, or a glob."""
        query = f"?pattern={quote(pattern, safe='')}" if pattern else ""
        found = await self._call("GET", at("os") + query)
        return [OsSummary.model_validate(item) for item in found]

    async def system(self, name: str) -> OsDetail:
        """One operating system, and the hardware a guest with it would get."""
        return OsDetail.model_validate(await self._call("GET", at("os", name)))

    async def version(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("GET", at("version"))
        return found

    async def doctor(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._call("GET", at("doctor"))
        return found

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[httpx.Response]:
        for attempt in (1, 2):
            try:
                async with self._http.stream(method, path, **options) as reply:
                    if reply.status_code >= 400:
                        raise error_of(reply.status_code, await reply.aread())
                    yield reply
                    return
            except httpx.ConnectError as error:
                if attempt == 2 or not self._launch:
                    raise gone(self.paths, error) from error
                await asyncio.to_thread(ensure_daemon, self.paths)
            except httpx.TransportError as error:
                raise gone(self.paths, error) from error

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        async with self._stream(method, path, json=body) as reply:
            data = await reply.aread()
        return json.loads(data) if data else None

    async def _operate(self, method: str, path: str, body: Any, on_event: OnEvent | None) -> Any:
        events = Events(on_event)
        async with self._stream(method, path, json=body, headers=NDJSON) as reply:
            async for line in reply.aiter_lines():
                events.line(line)
        return events.finish()


class AsyncBox:
    """``Box`` for asyncio."""

    def __init__(self, twofold: AsyncTwofold, data: dict[str, Any]) -> None:
        self._twofold = twofold
        self.data = Instance.model_validate(data)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.remove(force=True)

    @property
    def name(self) -> str:
        return self.data.name

    async def refresh(self) -> Instance:
        return self._take(await self._twofold._call("GET", self._at()))

    async def start(self, *, on_event: OnEvent | None = None) -> Instance:
        return self._take(await self._twofold._operate("POST", self._at("start"), {}, on_event))

    async def stop(self, *, timeout_s: float | None = None, discard: bool = False) -> Instance:
        body = {**timeout_body(timeout_s), "discard": discard}
        return self._take(await self._twofold._operate("POST", self._at("stop"), body, None))

    async def restart(self, *, timeout_s: float | None = None) -> Instance:
        body = timeout_body(timeout_s)
        return self._take(await self._twofold._operate("POST", self._at("restart"), body, None))

    async def fork(
        self, *, count: int = 1, name: str | None = None, on_event: OnEvent | None = None
    ) -> "list[AsyncBox]":
        """More like this one, which runs; ``name`` may hold ``{n}``."""
        body = {"count": count, "name": name}
        found = await self._twofold._operate("POST", self._at("fork"), body, on_event)
        return [AsyncBox(self._twofold, item) for item in found]

    async def suspend(self, *, on_event: OnEvent | None = None) -> Instance:
        """Put a virtual machine to sleep on the disk; ``resume`` or ``start`` wakes it up."""
        return self._take(await self._twofold._operate("POST", self._at("suspend"), {}, on_event))

    async def snapshots(self) -> list[Snapshot]:
        found = await self._twofold._call("GET", self._at("snapshots"))
        return [Snapshot.model_validate(item) for item in found]

    async def snapshot(
        self,
        name: str | None = None,
        *,
        memory: bool = False,
        comment: str = "",
        on_event: OnEvent | None = None,
    ) -> Snapshot:
        """Keep it as it is now."""
        body = {"name": name, "memory": memory, "comment": comment}
        made = await self._twofold._operate("POST", self._at("snapshots"), body, on_event)
        return Snapshot.model_validate(made)

    async def restore(
        self,
        snapshot: str,
        *,
        start: bool | None = None,
        verify: bool | None = None,
        on_event: OnEvent | None = None,
    ) -> Instance:
        """Make it what it was then; what it is now is lost. Raises Corrupt; nothing is then."""
        path = self._at("snapshots", snapshot, "restore")
        body = {"start": start, **({} if verify is None else {"verify": verify})}
        return self._take(await self._twofold._operate("POST", path, body, on_event))

    async def verify_snapshot(self, snapshot: str, *, on_event: OnEvent | None = None) -> Snapshot:
        """Have all of it read and compared with its checksums. Raises Corrupt."""
        path = self._at("snapshots", snapshot, "verify")
        return Snapshot.model_validate(await self._twofold._operate("POST", path, None, on_event))

    async def remove_snapshot(self, snapshot: str) -> int:
        """Bytes freed at most."""
        found = await self._twofold._call("DELETE", self._at("snapshots", snapshot))
        return int(found["size_bytes"])

    async def kill(self, signal: str = "SIGKILL") -> Instance:
        body = {"signal": signal}
        return self._take(await self._twofold._call("POST", self._at("kill"), body))

    async def pause(self) -> Instance:
        return self._take(await self._twofold._call("POST", self._at("pause")))

    async def resume(self) -> Instance:
        return self._take(await self._twofold._call("POST", self._at("resume")))

    async def remove(self, *, force: bool = False) -> None:
        await self._twofold._call("DELETE", self._at() + ("?force=true" if force else ""))

    async def wait(self) -> int:
        answer = await self._twofold._call("GET", self._at("wait"))
        return int(answer["exit_code"] if answer["exit_code"] is not None else 125)

    async def exec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout_s: float = 60.0,
    ) -> Completed:
        body = exec_body(command, stdin, env, workdir, user, timeout_s)
        return captured(await self._twofold._call("POST", self._at("exec"), body))

    async def change(self, *, on_event: OnEvent | None = None, **limits: Any) -> Instance:
        body = change_body(limits)
        return self._take(await self._twofold._operate("PATCH", self._at(), body, on_event))

    async def plug(
        self,
        *,
        volume: Volume | None = None,
        disk_bytes: int | None = None,
        network: str | None = None,
        on_event: OnEvent | None = None,
    ) -> Instance:
        body = plug_body(volume, disk_bytes, network)
        return self._take(await self._twofold._operate("POST", self._at("plug"), body, on_event))

    async def unplug(
        self,
        *,
        volume: str | None = None,
        disk: int | None = None,
        network: bool = False,
        force: bool = False,
        on_event: OnEvent | None = None,
    ) -> Instance:
        body = unplug_body(volume, disk, network, force)
        return self._take(await self._twofold._operate("POST", self._at("unplug"), body, on_event))

    async def processes(self) -> list[ProcessInfo]:
        found = await self._twofold._call("GET", self._at("processes"))
        return [ProcessInfo.model_validate(item) for item in found]

    async def usage(self) -> Use:
        (found,) = await self._twofold._call("GET", at("usage") + f"?name={self.data.id}")
        return Use.model_validate(found)

    async def exposure(self) -> Exposure:
        return Exposure.model_validate(await self._twofold._call("GET", self._at("exposure")))

    async def exec_detached(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
    ) -> str:
        body = detached_body(command, env, workdir, user)
        return str((await self._twofold._call("POST", self._at("exec"), body))["session"])

    async def signal_exec(self, session: str, signal: str = "SIGKILL") -> None:
        await self._twofold._call("POST", self._at("exec", session, "kill"), {"signal": signal})

    async def logs(self, *, tail: int | None = None) -> bytes:
        query = f"?tail={tail}" if tail is not None else ""
        async with self._twofold._stream("GET", self._at("logs") + query) as reply:
            return await reply.aread()

    async def follow_logs(self) -> AsyncIterator[str]:
        async with self._twofold._stream("GET", self._at("logs") + "?follow=true") as reply:
            async for line in reply.aiter_lines():
                yield line

    async def screenshot(self) -> bytes:
        async with self._twofold._stream("GET", self._at("screen.png")) as reply:
            return await reply.aread()

    async def type(self, text: str = "", *, keys: Sequence[str] = (), delay_ms: int = 20) -> Typed:
        body = {"text": text, "keys": list(keys), "delay_ms": delay_ms}
        return Typed.model_validate(await self._twofold._call("POST", self._at("keys"), body))

    async def point(
        self, x: int | None = None, y: int | None = None, *, click: str | None = None
    ) -> Pointed:
        body = {"x": x, "y": y, "click": click}
        return Pointed.model_validate(await self._twofold._call("POST", self._at("mouse"), body))

    async def read_archive(self, path: str) -> bytes:
        query = f"?path={quote(path, safe='')}"
        try:
            async with self._twofold._stream("GET", self._at("archive") + query) as reply:
                return await reply.aread()
        except Unavailable as error:
            if not isinstance(error.__cause__, httpx.RemoteProtocolError):
                raise
        is_there = any(one.id == self.data.id for one in await self._twofold.instances())
        raise broken_off(self._twofold.paths, self.data.name, path, is_there=is_there)

    async def write_archive(self, path: str, tar: bytes) -> None:
        query = f"?path={quote(path, safe='')}"
        at = self._at("archive") + query
        async with self._twofold._stream("PUT", at, content=tar) as reply:
            await reply.aread()

    def _at(self, *more: str) -> str:
        return at("instances", self.data.id, *more)

    def _take(self, data: dict[str, Any]) -> Instance:
        self.data = Instance.model_validate(data)
        return self.data
