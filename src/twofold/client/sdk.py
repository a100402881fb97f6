"""The Python SDK: the same nouns and verbs as the command, synchronous and asynchronous.

    from twofold.client.sdk import Twofold

    with Twofold() as twofold:
        done = twofold.run("debian", ["cat", "/etc/os-release"])
        print(done.stdout.decode())
        with twofold.run_detached("debian", ["sleep", "60"], isolation="vm") as box:
            print(box.exec(["uname", "-r"]).stdout)

Talks to the daemon of this host over its unix socket and starts it where root may. Every failure
is an exception of ``twofold.errors``, with a hint. The asynchronous twin is ``AsyncTwofold``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from twofold.client.aio import AsyncBox, AsyncTwofold
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

__all__ = ["AsyncBox", "AsyncTwofold", "Box", "Completed", "Twofold"]


class Twofold:
    """A connection to one Twofold. Use it as a context manager, or ``close`` it."""

    def __init__(self, root: str | None = None, *, launch: bool = True) -> None:
        """``root`` as in ``--root``; ``launch``: start the daemon where none runs."""
        self.paths = Paths(root)
        self._launch = launch
        transport = httpx.HTTPTransport(uds=self.paths.api_socket)
        self._http = httpx.Client(transport=transport, base_url=BASE, timeout=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Instances

    def run(self, image: str, command: Sequence[str] | None = None, **fields: Any) -> Completed:
        """Run a command to its end in a new instance and take its output. The instance is gone
        afterwards. ``fields`` are those of ``InstanceSpec``:
        ``run("debian", ["uname"], isolation="vm", memory_bytes=1 << 30)``."""
        with self.run_detached(image, command, **fields) as box:
            exit_code = box.wait()
            stdout, stderr = split_log(box.logs())
        return Completed(exit_code=exit_code, stdout=stdout, stderr=stderr)

    def run_detached(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        on_event: OnEvent | None = None,
        **fields: Any,
    ) -> "Box":
        """Start a new instance and return it while it runs."""
        body = {"spec": spec_body(image, command, fields), "start": True}
        return Box(self, self._operate("POST", at("instances"), body, on_event))

    def create(self, image: str, command: Sequence[str] | None = None, **fields: Any) -> "Box":
        """A new instance that is not started."""
        body = {"spec": spec_body(image, command, fields), "start": False}
        return Box(self, self._operate("POST", at("instances"), body, None))

    def instances(self, *, everything: bool = True) -> list[Instance]:
        query = "?all=true" if everything else ""
        found = self._call("GET", at("instances") + query)
        return [Instance.model_validate(item) for item in found]

    def instance(self, name: str) -> "Box":
        """An existing instance by name, id or the beginning of its id."""
        return Box(self, self._call("GET", at("instances", name)))

    # Images

    def usage(self) -> list[Use]:
        """One sample of each instance that runs."""
        return [Use.model_validate(item) for item in self._call("GET", at("usage"))]

    def images(self) -> list[Image]:
        return [Image.model_validate(item) for item in self._call("GET", at("images"))]

    def image(self, name: str) -> Image:
        return Image.model_validate(self._call("GET", at("images", name)))

    def build_image(self, name: str, *, on_event: OnEvent | None = None, **fields: Any) -> Image:
        """``build_image("debian", include=["apache2"])``."""
        body = {"name": name, **fields}
        found = self._operate("POST", at("images", "build"), body, on_event)
        return Image.model_validate(found)

    def import_image(
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
        found = self._operate("POST", at("images", "import"), body, on_event)
        return Image.model_validate(found)

    def verify_image(self, name: str, *, on_event: OnEvent | None = None) -> Image:
        """Have all of a disk read and compared with its checksum. Raises Corrupt."""
        found = self._operate("POST", at("images", name, "verify"), None, on_event)
        return Image.model_validate(found)

    def remove_image(self, name: str, *, force: bool = False) -> None:
        self._call("DELETE", at("images", name) + ("?force=true" if force else ""))

    def templates(self) -> list[Template]:
        """What virtual machines are forked from; last used first."""
        found = self._call("GET", at("templates"))
        return [Template.model_validate(item) for item in found]

    def remove_template(self, key: str) -> int:
        """Bytes freed. Running forks of it go on; the next start of its kind makes another."""
        return int((self._call("DELETE", at("templates", key)))["size_bytes"])

    def template_limit(self, limit_bytes: int | None = None) -> TemplateLimit:
        """What all of them may take on the disk, and take; with a number it is set first."""
        method, body = "GET", None
        if limit_bytes is not None:
            method, body = "PUT", {"limit_bytes": limit_bytes}
        found = self._call(method, at("template-limit"), body)
        return TemplateLimit.model_validate(found)

    def systems(self, pattern: str = "") -> list[OsSummary]:
        """The operating systems that are known; ``pattern``: a part of id or name, or a glob."""
        query = f"?pattern={quote(pattern, safe='')}" if pattern else ""
        found = self._call("GET", at("os") + query)
        return [OsSummary.model_validate(item) for item in found]

    def system(self, name: str) -> OsDetail:
        """One operating system, and the hardware a guest with it would get."""
        return OsDetail.model_validate(self._call("GET", at("os", name)))

    # Host

    def version(self) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", at("version"))
        return found

    def doctor(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", at("doctor"))
        return found

    # Transport

    @contextmanager
    def _stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        for attempt in (1, 2):
            try:
                with self._http.stream(method, path, **options) as reply:
                    if reply.status_code >= 400:
                        raise error_of(reply.status_code, reply.read())
                    yield reply
                    return
            except httpx.ConnectError as error:
                if attempt == 2 or not self._launch:
                    raise gone(self.paths, error) from error
                ensure_daemon(self.paths)
            except httpx.TransportError as error:
                raise gone(self.paths, error) from error

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        with self._stream(method, path, json=body) as reply:
            data = reply.read()
        return json.loads(data) if data else None

    def _operate(self, method: str, path: str, body: Any, on_event: OnEvent | None) -> Any:
        events = Events(on_event)
        with self._stream(method, path, json=body, headers=NDJSON) as reply:
            for line in reply.iter_lines():
                events.line(line)
        return events.finish()


class Box:
    """One instance. As a context manager it is removed at the end, running or not."""

    def __init__(self, twofold: Twofold, data: dict[str, Any]) -> None:
        self._twofold = twofold
        self.data = Instance.model_validate(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove(force=True)

    @property
    def name(self) -> str:
        return self.data.name

    def refresh(self) -> Instance:
        """Its state now."""
        return self._take(self._twofold._call("GET", self._at()))

    def start(self, *, on_event: OnEvent | None = None) -> Instance:
        return self._take(self._twofold._operate("POST", self._at("start"), {}, on_event))

    def stop(self, *, timeout_s: float | None = None, discard: bool = False) -> Instance:
        """``timeout_s``: before it is killed; None: 10, or 60 for a machine with an init.

        ``discard`` gives up the memory of one that is suspended.
        """
        body = {**timeout_body(timeout_s), "discard": discard}
        return self._take(self._twofold._operate("POST", self._at("stop"), body, None))

    def restart(self, *, timeout_s: float | None = None) -> Instance:
        body = timeout_body(timeout_s)
        return self._take(self._twofold._operate("POST", self._at("restart"), body, None))

    def fork(
        self, *, count: int = 1, name: str | None = None, on_event: OnEvent | None = None
    ) -> "list[Box]":
        """More like this one, which runs; ``name`` may hold ``{n}``."""
        body = {"count": count, "name": name}
        found = self._twofold._operate("POST", self._at("fork"), body, on_event)
        return [Box(self._twofold, item) for item in found]

    def suspend(self, *, on_event: OnEvent | None = None) -> Instance:
        """Put a virtual machine to sleep on the disk; ``resume`` or ``start`` wakes it up."""
        return self._take(self._twofold._operate("POST", self._at("suspend"), {}, on_event))

    def snapshots(self) -> list[Snapshot]:
        """Oldest first."""
        found = self._twofold._call("GET", self._at("snapshots"))
        return [Snapshot.model_validate(item) for item in found]

    def snapshot(
        self,
        name: str | None = None,
        *,
        memory: bool = False,
        comment: str = "",
        on_event: OnEvent | None = None,
    ) -> Snapshot:
        """Keep it as it is now."""
        body = {"name": name, "memory": memory, "comment": comment}
        path = self._at("snapshots")
        return Snapshot.model_validate(self._twofold._operate("POST", path, body, on_event))

    def restore(
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
        return self._take(self._twofold._operate("POST", path, body, on_event))

    def verify_snapshot(self, snapshot: str, *, on_event: OnEvent | None = None) -> Snapshot:
        """Have all of it read and compared with its checksums. Raises Corrupt."""
        path = self._at("snapshots", snapshot, "verify")
        return Snapshot.model_validate(self._twofold._operate("POST", path, None, on_event))

    def remove_snapshot(self, snapshot: str) -> int:
        """Bytes freed at most."""
        found = self._twofold._call("DELETE", self._at("snapshots", snapshot))
        return int(found["size_bytes"])

    def kill(self, signal: str = "SIGKILL") -> Instance:
        return self._take(self._twofold._call("POST", self._at("kill"), {"signal": signal}))

    def pause(self) -> Instance:
        return self._take(self._twofold._call("POST", self._at("pause")))

    def resume(self) -> Instance:
        return self._take(self._twofold._call("POST", self._at("resume")))

    def remove(self, *, force: bool = False) -> None:
        self._twofold._call("DELETE", self._at() + ("?force=true" if force else ""))

    def wait(self) -> int:
        """Until it is stopped; its exit code."""
        answer = self._twofold._call("GET", self._at("wait"))
        return int(answer["exit_code"] if answer["exit_code"] is not None else 125)

    def exec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout_s: float = 60.0,
    ) -> Completed:
        """Run a command inside and take its output (at most 16 MiB)."""
        body = exec_body(command, stdin, env, workdir, user, timeout_s)
        return captured(self._twofold._call("POST", self._at("exec"), body))

    def change(self, *, on_event: OnEvent | None = None, **limits: Any) -> Instance:
        """New limits (``cpus``, ``memory_bytes``, ``pids``, ``restart``), at once where the wall
        allows it; None takes one away. What has to wait for a start comes as a warning event."""
        body = change_body(limits)
        return self._take(self._twofold._operate("PATCH", self._at(), body, on_event))

    def plug(
        self,
        *,
        volume: Volume | None = None,
        disk_bytes: int | None = None,
        network: str | None = None,
        on_event: OnEvent | None = None,
    ) -> Instance:
        """Give it one of a directory of the host, an empty disk and, where it has none, a network
        card (``"default"``): at once, and at every later start."""
        body = plug_body(volume, disk_bytes, network)
        return self._take(self._twofold._operate("POST", self._at("plug"), body, on_event))

    def unplug(
        self,
        *,
        volume: str | None = None,
        disk: int | None = None,
        network: bool = False,
        force: bool = False,
        on_event: OnEvent | None = None,
    ) -> Instance:
        """Take out the volume with that target, a disk with all that is on it, or the network
        card. ``force``: also a disk that is in use inside."""
        body = unplug_body(volume, disk, network, force)
        return self._take(self._twofold._operate("POST", self._at("unplug"), body, on_event))

    def processes(self) -> list[ProcessInfo]:
        """What runs inside."""
        found = self._twofold._call("GET", self._at("processes"))
        return [ProcessInfo.model_validate(item) for item in found]

    def usage(self) -> Use:
        """One sample; its counters grow."""
        (found,) = self._twofold._call("GET", at("usage") + f"?name={self.data.id}")
        return Use.model_validate(found)

    def exposure(self) -> Exposure:
        """What stands between it and the host."""
        return Exposure.model_validate(self._twofold._call("GET", self._at("exposure")))

    def exec_detached(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
    ) -> str:
        """Start a command inside that nobody watches; a name to ``signal_exec`` it by."""
        body = detached_body(command, env, workdir, user)
        return str(self._twofold._call("POST", self._at("exec"), body)["session"])

    def signal_exec(self, session: str, signal: str = "SIGKILL") -> None:
        """Send a signal to a command that ``exec_detached`` started."""
        self._twofold._call("POST", self._at("exec", session, "kill"), {"signal": signal})

    def logs(self, *, tail: int | None = None) -> bytes:
        """The log as it is: lines of ``TIME STREAM F|P CONTENT``."""
        query = f"?tail={tail}" if tail is not None else ""
        with self._twofold._stream("GET", self._at("logs") + query) as reply:
            return reply.read()

    def follow_logs(self) -> Iterator[str]:
        """Log lines as they are written, until it ends."""
        with self._twofold._stream("GET", self._at("logs") + "?follow=true") as reply:
            yield from reply.iter_lines()

    def screenshot(self) -> bytes:
        """A PNG of a virtual machine's screen as it is now."""
        with self._twofold._stream("GET", self._at("screen.png")) as reply:
            return reply.read()

    def type(self, text: str = "", *, keys: Sequence[str] = (), delay_ms: int = 20) -> Typed:
        """Type on a virtual machine's keyboard: ``text`` (``"ls\\n"``), then chords such as
        ``"ctrl-alt-f2"``."""
        body = {"text": text, "keys": list(keys), "delay_ms": delay_ms}
        return Typed.model_validate(self._twofold._call("POST", self._at("keys"), body))

    def point(
        self, x: int | None = None, y: int | None = None, *, click: str | None = None
    ) -> Pointed:
        """Move its mouse, and click: ``left``, ``right``, ``middle`` or ``double``."""
        body = {"x": x, "y": y, "click": click}
        return Pointed.model_validate(self._twofold._call("POST", self._at("mouse"), body))

    def read_archive(self, path: str) -> bytes:
        """A path inside as a tar."""
        query = f"?path={quote(path, safe='')}"
        try:
            with self._twofold._stream("GET", self._at("archive") + query) as reply:
                return reply.read()
        except Unavailable as error:
            if not isinstance(error.__cause__, httpx.RemoteProtocolError):
                raise
        is_there = any(one.id == self.data.id for one in self._twofold.instances())
        raise broken_off(self._twofold.paths, self.data.name, path, is_there=is_there)

    def write_archive(self, path: str, tar: bytes) -> None:
        """Unpack a tar into the directory ``path`` inside."""
        query = f"?path={quote(path, safe='')}"
        with self._twofold._stream("PUT", self._at("archive") + query, content=tar) as reply:
            reply.read()

    def _at(self, *more: str) -> str:
        return at("instances", self.data.id, *more)

    def _take(self, data: dict[str, Any]) -> Instance:
        self.data = Instance.model_validate(data)
        return self.data
