"""A real guest under a real monitor, without daemon, keeper and sandbox, for the agent's tests.

The monitor runs in a forked child as it does under the keeper; the tests speak with it through the
same three sockets.
"""

import json
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from twofold.hypervisor import machine, monitor
from twofold.hypervisor.kernel import KernelBundle
from twofold.linux import process, sockets

PROCESS: dict[str, Any] = {
    "argv": ["sleep", "infinity"],
    "env": [],
    "cwd": "/",
    "user": "",
    "tty": False,
    "capabilities": [],
    "no_new_privs": False,
    "rlimits": {},
}


class Session:
    """An exec or a copy: the control connection and our ends of its descriptors."""

    def __init__(self, sock: socket.socket, stdin: int, stdout: int, stderr: int) -> None:
        self.sock, self.stdin, self.stdout, self.stderr = sock, stdin, stdout, stderr

    def message(self, timeout_s: float = 60.0) -> dict[str, Any]:
        self.sock.settimeout(timeout_s)
        message, _ = sockets.receive(self.sock)
        assert message is not None, "the monitor closed the connection"
        return message

    def send(self, **message: Any) -> None:
        sockets.send(self.sock, message)

    def close(self) -> None:
        self.sock.close()
        for fd in {self.stdin, self.stdout, self.stderr}:
            if fd >= 0:
                os.close(fd)
        self.stdin = self.stdout = self.stderr = -1


class Guest:
    """One machine. The payload's stdio: ``stdin`` (write), ``stdout`` and ``stderr`` (read)."""

    def __init__(
        self,
        bundle: KernelBundle,
        image: Path,
        folder: Path,
        *,
        hardware: str = "virtio",
        memory_mib: int = 384,
        data_disk: bool = True,
        ready_timeout_s: float = 90.0,
        discard: bool = True,
        initrd: str = "",
        stdio: tuple[int, int, int] | None = None,
        guest: dict[str, Any] | None = None,
        more_disk: Path | None = None,
        kernel_arguments: dict[str, str] | None = None,
        **payload: Any,
    ) -> None:
        self.folder = folder
        data = folder / "data.img"
        if not data.exists():
            with open(data, "wb") as file:
                file.truncate(1 << 30)
            subprocess.run(["mkfs.ext4", "-q", "-F", str(data)], check=True)
        spec = machine.MachineSpec(
            instance_id="rig",
            hardware=hardware,
            accelerator="tcg",
            vcpus=1,
            memory_bytes=memory_mib << 20,
            root_disk=str(image),
            data_disk=str(data),
            disks=((0, str(more_disk)),) if more_disk else (),
            kernel_arguments=kernel_arguments or {},
        )
        built = machine.build(spec)
        argv = [word.replace("/boot/", f"{bundle.directory}/") for word in built.argv]
        if initrd:
            argv[argv.index("-initrd") + 1] = initrd
        if not data_disk:
            argv = [
                word.replace("twofold.data=/dev/vdb", "twofold.data=/dev/nope") for word in argv
            ]
        config = {"hostname": "rig", "mode": "application", "process": PROCESS | payload}
        vm = {
            "argv": argv,
            "guest": config | (guest or {}),
            "ready_timeout_s": ready_timeout_s,
            "discard": discard,
        }
        self.console = folder / "console.log"
        self.control_path = str(folder / "control.sock")
        disks = {"root": str(image), "data": str(data)}
        self._fork(vm, disks | ({"disk0": str(more_disk)} if more_disk else {}), stdio)

    def _fork(
        self, vm: dict[str, Any], disks: dict[str, str], stdio: tuple[int, int, int] | None
    ) -> None:
        fds = {
            name: os.open(path, os.O_RDONLY if name == "root" else os.O_RDWR)
            for name, path in disks.items()
        }
        fds |= {
            "console": os.open(self.console, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600),
        }
        qmp = socket.socket(socket.AF_UNIX)
        qmp_path = f"{self.folder}/qmp.sock"
        Path(qmp_path).unlink(missing_ok=True)
        qmp.bind(qmp_path)
        qmp.listen(1)
        fds["qmp"] = qmp.fileno()
        control = sockets.listen(self.control_path, mode=0o600)
        self.status, status_theirs = sockets.pair()
        pipes = [os.pipe() for _ in range(3)]
        theirs = stdio or (pipes[0][0], pipes[1][1], pipes[2][1])
        ours = (pipes[0][1], pipes[1][0], pipes[2][0])
        self.started_at = time.monotonic()
        # PID 1 of a namespace, as under the keeper: when it goes, or we do, QEMU goes with it.
        self.pid, self.pidfd = process.clone(process.CLONE_NEWPID)
        if self.pid == 0:
            code = 125
            try:
                process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
                for fd in ours:
                    os.close(fd)
                self.status.close()
                for number in range(3):
                    os.dup2(theirs[number], number)
                    os.close(theirs[number])
                code = monitor.run(
                    vm, stdio=(0, 1, 2), fds=fds, status=status_theirs, control=control
                )
            finally:
                os._exit(code)
        for fd in (*fds.values(), *(theirs if stdio is None else ())):
            if fd != qmp.fileno():
                os.close(fd)
        if stdio is not None:
            for read, write in pipes:
                os.close(read)
                os.close(write)
        qmp.close()
        status_theirs.close()
        control.close()
        self.stdin, self.stdout, self.stderr = ours if stdio is None else (-1, -1, -1)
        self.exit_code: int | None = None

    def first_word(self, timeout_s: float = 120.0) -> dict[str, Any]:
        """``{"ready": …}`` or ``{"error": …}``."""
        self.status.settimeout(timeout_s)
        message, _ = sockets.receive(self.status)
        assert message is not None, f"the monitor died: {self.console_text()[-2000:]}"
        return message

    def ready(self) -> dict[str, Any]:
        word = self.first_word()
        assert word.get("ready"), word
        return dict(word["facts"])

    def console_text(self) -> str:
        return self.console.read_text(errors="replace")

    def wait(self, timeout_s: float = 60.0) -> int:
        """The monitor's exit status."""
        if self.exit_code is None:
            assert select.select([self.pidfd], [], [], timeout_s)[0], "the monitor does not end"
            _, status = os.waitpid(self.pid, 0)
            self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sockets.enlarge(sock)
        sock.connect(self.control_path)
        return sock

    def open_exec(self, *argv: str, tty: bool = False, **more: Any) -> Session:
        """Start a command; with ``tty`` both streams are one socket."""
        size = {key: more.pop(key) for key in ("rows", "cols") if key in more}
        wanted = PROCESS | {"argv": list(argv), "tty": tty} | more
        request = {"op": "exec", "process": wanted, "tty": tty, **size}
        sock = self.connect()
        if tty:
            near, far = socket.socketpair()
            sockets.send(sock, request, (far.fileno(),))
            far.close()
            fd = near.detach()
            return Session(sock, fd, fd, -1)
        pipes = [os.pipe() for _ in range(3)]
        sockets.send(sock, request, (pipes[0][0], pipes[1][1], pipes[2][1]))
        for fd in (pipes[0][0], pipes[1][1], pipes[2][1]):
            os.close(fd)
        return Session(sock, pipes[0][1], pipes[1][0], pipes[2][0])

    def run(self, *argv: str, stdin: bytes = b"", **more: Any) -> tuple[int, bytes, bytes]:
        """Run a command to its end: (exit code, stdout, stderr)."""
        session = self.open_exec(*argv, **more)
        try:
            message = session.message()
            if "error" in message:
                return int(message["error"]["exit_code"]), b"", json.dumps(message).encode()
            os.write(session.stdin, stdin)
            os.close(session.stdin)
            session.stdin = -1
            output = read_both(session.stdout, session.stderr)
            message = session.message()
            assert message.get("event") == "exit", message
            return int(message["exit_code"]), *output
        finally:
            session.close()

    def copy(self, direction: str, path: str) -> Session:
        """A tar stream out of or into the guest."""
        sock = self.connect()
        read, write = os.pipe()
        given, kept = (write, read) if direction == "out" else (read, write)
        sockets.send(sock, {"op": "archive", "direction": direction, "path": path}, (given,))
        os.close(given)
        if direction == "out":
            return Session(sock, -1, kept, -1)
        return Session(sock, kept, -1, -1)

    def errand(self, what: str, **words: Any) -> Session:
        """What it answers comes out of ``stdout``."""
        sock = self.connect()
        read, write = os.pipe()
        sockets.send(sock, {"op": "errand", "what": what, "words": words}, (write,))
        os.close(write)
        return Session(sock, -1, read, -1)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.exit_code is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.wait()
        for fd in (self.stdin, self.stdout, self.stderr, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.status.close()


def read_both(first: int, second: int) -> tuple[bytes, bytes]:
    """Everything from two pipes until both end."""
    found = {first: bytearray(), second: bytearray()}
    open_fds = set(found)
    while open_fds:
        for fd in select.select(list(open_fds), [], [])[0]:
            data = os.read(fd, 1 << 20)
            found[fd] += data
            if not data:
                open_fds.discard(fd)
    return bytes(found[first]), bytes(found[second])
