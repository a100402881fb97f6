"""A keeper of its own for tests that speak to the runtime directly, without a daemon."""

import contextlib
import dataclasses
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twofold.linux import sockets
from twofold.model.paths import Paths
from twofold.runtime import plan as p

CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
PRIVATE = ("nosuid", "noexec", "nodev")
MOUNTS = (
    p.Mount(kind="proc", source="proc", target="/proc", options=PRIVATE),
    p.Mount(kind="tmpfs", source="dev", target="/dev", options=("nosuid", "mode=755", "size=64m")),
    p.Mount(kind="devpts", source="devpts", target="/dev/pts", options=("nosuid", "ptmxmode=0666")),
    p.Mount(kind="tmpfs", source="shm", target="/dev/shm", options=(*PRIVATE, "mode=1777")),
    p.Mount(kind="mqueue", source="mqueue", target="/dev/mqueue", options=PRIVATE),
    p.Mount(kind="sysfs", source="sysfs", target="/sys", options=(*PRIVATE, "ro")),
    p.Mount(kind="cgroup", source="cgroup", target="/sys/fs/cgroup", options=(*PRIVATE, "ro")),
)
MASKED = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/sys/firmware")
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
ID_BASE = 7 << 24


class Lab:
    """A keeper process and a connection to it. ``call`` returns the whole reply, errors too."""

    def __init__(self, root: Path, layer: Path) -> None:
        self.paths = Paths(str(root))
        self.layer = layer
        os.makedirs(self.paths.run, mode=0o711, exist_ok=True)
        os.chmod(self.paths.run, 0o711)
        read_end, write_end = os.pipe()
        self.log_path = root / "keeper.log"
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "twofold.daemon.keeper", "--root", self.paths.root),
                    *("--ready-fd", str(write_end)),
                ],
                pass_fds=(write_end,),
                stderr=log,
            )
        os.close(write_end)
        assert os.read(read_end, 16) == b"ready", self.log_path.read_text()
        os.close(read_end)
        self._sequence = 0
        self._events: list[dict[str, Any]] = []
        self.socket = self.connect()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sockets.enlarge(sock)
        sock.connect(self.paths.keeper_socket)
        return sock

    def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        self._sequence += 1
        sockets.send(self.socket, {"seq": self._sequence, "op": op, **fields}, fds)
        while True:
            message = self._receive()
            if "event" not in message:
                assert message["seq"] == self._sequence
                return message
            self._events.append(message)

    def event(self, kind: str) -> dict[str, Any]:
        while True:
            for event in self._events:
                if event["event"] == kind:
                    self._events.remove(event)
                    return event
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        assert select.select([self.socket], [], [], 20)[0], "the keeper does not answer"
        message, _ = sockets.receive(self.socket)
        assert message is not None, self.log_path.read_text()
        return message

    def plan(self, name: str, *argv: str, **changes: Any) -> p.SandboxPlan:
        """A container of the lab's layer; ``changes`` replace fields of the plan or process."""
        upper, work = f"{self.paths.root}/{name}/upper", f"{self.paths.root}/{name}/work"
        for directory in (upper, work):
            os.makedirs(directory, exist_ok=True)
            os.chown(directory, ID_BASE, ID_BASE)
        of_process = {field.name for field in dataclasses.fields(p.Process)}
        process = {key: changes.pop(key) for key in list(changes) if key in of_process}
        limits = changes.pop("limits", {"pids": 100})
        base = p.SandboxPlan(
            instance_id=name,
            kind="container",
            id_base=ID_BASE,
            hostname="box",
            rootfs=p.Rootfs(lower=(str(self.layer),), upper=upper, work=work, volatile=True),
            mounts=MOUNTS,
            cgroup=p.Cgroup(path=f"{self.paths.cgroup}/{name}", **limits),
            process=p.Process(argv=argv, capabilities=CAPABILITIES, **process),
            masked_paths=MASKED,
            readonly_paths=READONLY,
            stdio=p.Stdio(log_dir=f"{self.paths.root}/{name}/logs"),
            run_dir=f"{self.paths.run}/instances/{name}",
        )
        return dataclasses.replace(base, **changes)

    def create(self, plan: p.SandboxPlan) -> dict[str, Any]:
        return self.call("create", plan=plan.to_dict())

    def start(self, plan: p.SandboxPlan) -> dict[str, Any]:
        created = self.create(plan)
        assert "ok" in created, created
        return self.call("start", id=plan.instance_id)

    def run(self, name: str, *argv: str, **changes: Any) -> tuple[int, str]:
        """Run to the end and release. Returns (exit code, what it wrote to both streams)."""
        plan = self.plan(name, *argv, **changes)
        started = self.start(plan)
        code = self.event("exit")["exit_code"]
        assert "ok" in self.call("release", id=name)
        if "error" in started:
            return started["error"]["exit_code"], started["error"]["message"]
        return code, self.log(name)

    def log(self, name: str) -> str:
        out = []
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"{self.paths.root}/{name}/logs/current").read_text().splitlines():
                _, _, kind, text = line.split(" ", 3)
                out.append(text + ("\n" if kind == "F" else ""))
        return "".join(out)

    def execute(self, name: str, *argv: str, **process: Any) -> tuple[int, str]:
        read_end, write_end = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        plan = p.Process(argv=argv, capabilities=CAPABILITIES, **process)
        fds = (null, write_end, write_end)
        reply = self.call("exec", fds, id=name, process=dataclasses.asdict(plan))
        os.close(write_end)
        os.close(null)
        with os.fdopen(read_end) as file:
            if "error" in reply:
                return reply["error"]["exit_code"], reply["error"]["message"]
            text = file.read()
        return self.event("session_exit")["exit_code"], text

    def close(self) -> None:
        for instance in self.call("hello")["instances"]:
            if instance["state"] != "ended":
                self.call("kill", id=instance["id"])
                self.event("exit")
            self.call("release", id=instance["id"])
        reply = self.call("shutdown")
        assert "ok" in reply, reply
        self.process.wait()
        self.socket.close()
        shutil.rmtree(self.paths.run)


@contextlib.contextmanager
def lab(tmp_path: Path, tarball: Path) -> Iterator[Lab]:
    """A lab whose layer is the unpacked ``tarball``; nothing of it is left afterwards."""
    layer = tmp_path / "layer"
    layer.mkdir()
    subprocess.run(["tar", "-xzf", tarball, "-C", layer], check=True)
    opened = Lab(tmp_path, layer)
    try:
        yield opened
    finally:
        opened.close()


def replace_keeper(lab: Lab) -> None:
    """SIGKILL to the keeper; the lab speaks to the next one."""
    pidfd = os.pidfd_open(lab.call("hello")["pid"])
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    lab.socket.close()
    lab.socket = lab.connect()


def cgroup_directories(paths: Paths) -> list[str]:
    """Every cgroup directory below this root's own, in all hierarchies."""
    found = []
    for base, directories, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{base}/{name}" for name in directories if f"{paths.cgroup}/" in f"{base}/"]
    return found


def until(condition: Any, *, timeout_s: float = 5.0) -> None:
    """Wait for something that no event announces."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
