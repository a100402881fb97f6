"""Runs a probe inside a root that ``runtime/mounting`` built, without the rest of a runtime.

``run(config, probe)`` makes the namespaces, prepares, builds, enters and seals as an OCI runtime
does, then calls ``probe`` in there and brings back what it returned (JSON).
"""

import contextlib
import errno
import json
import os
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.errors import TwofoldError, from_dict
from twofold.linux import process
from twofold.oci import document, mounts
from twofold.runtime import idmap, mounting
from twofold.runtime.mount_plan import CgroupView

RANGE = 2_000_000  # first host id of the user namespaces here
Probe = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    userns: bool = False
    mountns: bool = True
    cgroupns: bool = False
    pivot: bool = True
    cgroups: CgroupView | None = None
    before_build: Callable[[int], None] | None = None  # in the runtime, given the child's pid


def run(config: dict[str, Any], bundle: str, probe: Probe, **chosen: Any) -> Any:
    """What ``probe`` returned; raises the TwofoldError that the runtime would report."""
    options = Options(**chosen)
    plan = mounts.parse(
        document.parse(json.dumps(config).encode(), "config.json"),
        bundle=bundle,
        mount_namespace=options.mountns,
        user_namespace=options.userns,
        cgroup_namespace=options.cgroupns,
    )
    if options.userns:
        _give(f"{bundle}/rootfs")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    flags = process.CLONE_NEWPID
    if options.mountns:
        flags |= process.CLONE_NEWNS | process.CLONE_NEWNET | process.CLONE_NEWIPC
    if options.userns:
        flags |= process.CLONE_NEWUSER
    pid, pidfd = process.clone(flags)
    if pid == 0:
        ours.close()
        _inside(theirs, plan, options, probe)
    theirs.close()
    os.close(pidfd)
    try:
        return _outside(ours, pid, plan, options)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _give(root: str) -> None:
    """As an engine unpacks an image for a user namespace: its directories belong to root inside."""
    for directory, _, _ in os.walk(root):
        if os.stat(directory).st_uid == 0:
            os.chown(directory, RANGE, RANGE)


def _outside(sock: socket.socket, pid: int, plan: Any, options: Options) -> Any:
    userns_fd = -1
    if options.userns:
        idmap.write_maps(pid, RANGE)
        userns_fd = idmap.open_user_namespace(pid)
    try:
        prepared = mounting.prepare(plan, userns_fd=userns_fd, cgroups=options.cgroups)
    finally:
        if userns_fd >= 0:
            os.close(userns_fd)
    if options.before_build is not None:
        options.before_build(pid)
    socket.send_fds(sock, [json.dumps(prepared.layout()).encode()], prepared.descriptors())
    prepared.close()
    with sock.makefile("rb") as stream:
        answer = json.loads(stream.read() or b'{"error": {"message": "died without a word"}}')
    if "error" in answer:
        raise from_dict(answer["error"])
    return answer["result"]


def _inside(sock: socket.socket, plan: Any, options: Options, probe: Probe) -> None:
    answer: dict[str, Any] = {}
    try:
        data, fds, _, _ = socket.recv_fds(sock, 1 << 20, 250)
        if not data:
            os._exit(1)
        if options.userns:
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        if options.cgroupns:
            process.unshare(process.CLONE_NEWCGROUP)
        prepared = mounting.Prepared.received(json.loads(data), fds)
        built = mounting.build(plan, prepared, cgroups=options.cgroups)
        mounting.enter(plan, built, pivot=options.pivot)
        mounting.seal(plan, built)
        answer["result"] = probe()
    except TwofoldError as error:
        answer["error"] = error.to_dict()
    except BaseException:
        answer["error"] = {"message": traceback.format_exc()}
    finally:
        sock.sendall(json.dumps(answer).encode())
        os._exit(0)


# Probes' words


def mountinfo() -> dict[str, dict[str, Any]]:
    """Target → facts of the mount on top there."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.rstrip("\n").partition(" - ")
            fields = left.split(" ")
            kind, source, superblock = right.split(" ", 2)
            found[fields[4]] = {
                "kind": kind,
                "source": source,
                "root": fields[3],
                "flags": fields[5].split(","),
                "propagation": fields[6:],
                "superblock": superblock.split(","),
            }
    return found


def a_root(directory: str) -> str:
    """A bundle with an empty root: kernel file systems are all that a probe needs."""
    os.makedirs(f"{directory}/rootfs")
    for name in ("proc", "sys", "dev", "tmp", "etc"):
        os.mkdir(f"{directory}/rootfs/{name}")
    return directory


def a_config(*more: dict[str, Any], **linux: Any) -> dict[str, Any]:
    """A document with /proc, /sys and /dev as every engine asks for them, and ``more`` mounts."""
    quiet = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
            *more,
        ],
        "linux": linux,
    }


def for_anybody(tmp_path: Path) -> Path:
    """Root of a user namespace must be able to pass, as below a container store."""
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


def a_volume(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir()
    (made / "file").write_text("from the host")
    return made


@contextlib.contextmanager
def a_tree(volume: Path) -> Iterator[Path]:
    """The volume with a file system mounted below it."""
    below = volume / "below"
    below.mkdir()
    with mounted("tmpfs", below, "-t", "tmpfs", "-o", "mode=755"):
        (below / "deep").write_text("from below")
        (below / "deep").chmod(0o666)
        yield volume


@contextlib.contextmanager
def mounted(source: str | Path, target: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


def bind(source: Path | str, *options: str, at: str = "/v", **more: Any) -> dict[str, Any]:
    return {"destination": at, "source": str(source), "options": ["bind", *options], **more}


def tmpfs(*options: str, at: str = "/t") -> dict[str, Any]:
    return {"destination": at, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def fails(step: Callable[[], Any]) -> str:
    """The errno's name with which ``step`` failed; empty when it did not."""
    try:
        step()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def owner_of(path: str) -> list[int]:
    return [os.stat(path).st_uid, os.stat(path).st_gid]
