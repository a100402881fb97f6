"""A small Twofold for tests of the command: the API and the door on real sockets, no isolation.

Payloads are real processes of this machine, so descriptors, terminals and signals are real too.
Answers only what a test needs; ``replies`` adds fixed ones.
"""

import array
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The command as a process of its own whose run directory is the test's.
LAUNCHER = """
import sys
from twofold.model import paths
whole, run_dir = paths.Paths.__init__, sys.argv.pop(1)
def init(self, root=None):
    whole(self, root)
    self.run = run_dir
    self.api_socket, self.door_socket = f"{self.run}/api.sock", f"{self.run}/door.sock"
paths.Paths.__init__ = init
from twofold.cli import main
main.main()
"""


def instance(name: str = "web", **more: Any) -> dict[str, Any]:
    """An instance as the API shows it."""
    spec = {"name": name, "image": "debian", "isolation": "container", **more.pop("spec", {})}
    return {
        "id": "3f2a9c0d1e4b5a67",
        "name": name,
        "spec": spec,
        "state": "running",
        "image_digest": "sha256:00",
        "created_at": "2026-01-31T10:00:00Z",
        **more,
    }


class FakeTwofold:
    """Listens on ``api.sock`` and ``door.sock`` below ``directory`` until ``close``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requests: list[tuple[str, str, Any]] = []
        self.replies: dict[tuple[str, str], Callable[[], Iterator[bytes]]] = {}
        self.bodies: list[bytes] = []
        self.signals: list[str] = []
        self.resizes: list[tuple[int, int]] = []
        self.running: list[str] = []  # what one is attached to
        self.children: list[subprocess.Popen[bytes]] = []
        self._parked: dict[str, tuple[socket.socket, dict[str, Any], list[int]]] = {}
        self._new_ticket = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._listen("api.sock", socket.SOCK_STREAM, self._serve_api)
        self._listen("door.sock", socket.SOCK_SEQPACKET, self._serve_door)

    def _listen(self, name: str, kind: int, serve: Callable[[socket.socket], None]) -> None:
        listener = socket.socket(socket.AF_UNIX, kind)
        listener.bind(str(self.directory / name))
        listener.listen(16)
        self._sockets.append(listener)

        def loop() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                self._sockets.append(client)
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=loop, daemon=True).start()

    def close(self) -> None:
        for one in self._sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", LAUNCHER, str(self.directory), *words]

    def run(self, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        more.setdefault("timeout", 30)
        more.setdefault("stdin", None if "input" in more else subprocess.DEVNULL)
        if more["stdin"] is None:
            del more["stdin"]
        return subprocess.run(self.command(*words), capture_output=True, check=False, **more)

    # The door

    def _serve_door(self, client: socket.socket) -> None:
        data, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(3 * 4))
        descriptors = array.array("i")
        for _, _, raw in ancillary:
            descriptors.frombytes(raw)
        message = json.loads(data)
        with self._new_ticket:
            self._parked[message["ticket"]] = (client, message, list(descriptors))
            self._new_ticket.notify_all()
        end = select.poll()
        end.register(client, select.POLLHUP)
        end.poll()
        with self._new_ticket:
            if self._parked.pop(message["ticket"], None):
                for descriptor in descriptors:
                    os.close(descriptor)

    def start_payload(self, ticket: str, command: list[str]) -> None:
        """Run ``command`` with what was parked under ``ticket``."""
        with self._new_ticket:
            assert self._new_ticket.wait_for(lambda: ticket in self._parked, timeout=5)
            door, message, descriptors = self._parked.pop(ticket)
        handed: list[int] = []
        if message["tty"]:
            master, slave = pty.openpty()
            size = struct.pack("HHHH", message["rows"], message["cols"], 0, 0)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
            descriptors, handed, terminal = [slave, slave, slave], [master], master
        elif not message["direct"]:
            pipes = [os.pipe() for _ in range(3)]
            descriptors = [pipes[0][0], pipes[1][1], pipes[2][1]]
            handed, terminal = [pipes[0][1], pipes[1][0], pipes[2][0]], -1
        else:
            terminal = -1
        child = subprocess.Popen(
            command,
            stdin=descriptors[0],
            stdout=descriptors[1],
            stderr=descriptors[2],
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if message["tty"] else None,
        )
        self.children.append(child)
        started = json.dumps({"event": "started", "pid": child.pid}).encode()
        socket.send_fds(door, [started], handed)
        for descriptor in {*descriptors, *(handed if terminal < 0 else [])}:
            os.close(descriptor)
        threading.Thread(target=self._steer, args=(door, child, terminal), daemon=True).start()
        threading.Thread(target=self._reap, args=(door, child), daemon=True).start()

    def _steer(self, door: socket.socket, child: subprocess.Popen[bytes], terminal: int) -> None:
        while True:
            try:
                data = door.recv(65536)
            except OSError:
                return
            if not data:
                return
            message = json.loads(data)
            if message["op"] == "resize":
                self.resizes.append((message["rows"], message["cols"]))
            if message["op"] == "resize" and terminal >= 0:
                size = struct.pack("HHHH", message["rows"], message["cols"], 0, 0)
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
            elif message["op"] == "signal":
                self.signals.append(message["signal"])
                child.send_signal(getattr(signal, message["signal"]))

    def _reap(self, door: socket.socket, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        event = {"event": "exit", "exit_code": code if code >= 0 else 128 - code}
        try:
            door.send(json.dumps(event).encode())
        except OSError:
            pass

    # The API

    def _serve_api(self, client: socket.socket) -> None:
        stream = client.makefile("rwb")
        try:
            while line := stream.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (header := stream.readline().strip()) != b"":
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = self._body(stream, headers)
                self.bodies.append(body)
                is_json = body and headers.get("content-type") == "application/json"
                parsed = json.loads(body) if is_json else None
                self.requests.append((method, path, parsed))
                for piece in self._answer(method, path, parsed):
                    stream.write(piece)
                    stream.flush()
        except (OSError, ValueError):
            pass
        finally:
            client.close()

    @staticmethod
    def _body(stream: Any, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return bytes(stream.read(int(headers.get("content-length", 0))))
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
        return body

    def _answer(self, method: str, path: str, body: Any) -> Iterator[bytes]:
        fixed = self.replies.get((method, path))
        if fixed:
            yield from fixed()
        elif path in ("/v1/instances", "/v1/instances/web/exec") and method == "POST":
            command = body.get("command") or body.get("spec", {}).get("command")
            if body.get("ticket"):
                self.start_payload(body["ticket"], command)
            made = instance(spec=body.get("spec", {}))
            yield from ndjson({"type": "result", "result": made})
        elif path == "/v1/instances/web/attach":
            self.start_payload(body["ticket"], self.running)
            yield b"HTTP/1.1 204 X\r\n\r\n"
        elif path.endswith("/wait?condition=removed"):
            yield reply({"exit_code": 0})
        else:
            error = {"code": "not_found", "message": f"no {path}", "hint": "twofold list"}
            yield reply({"error": error}, status=404)


def reply(data: Any, *, status: int = 200) -> bytes:
    body = json.dumps(data).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(*pieces: bytes, content_type: str = "application/octet-stream") -> Iterator[bytes]:
    yield f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n".encode()
    yield b"Transfer-Encoding: chunked\r\n\r\n"
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def ndjson(*events: Any) -> Iterator[bytes]:
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    return chunked(*lines, content_type="application/x-ndjson")
