"""Starts the daemon on demand and waits until it says that it is ready.

Only root can. A lock file in the run directory lets fifty commands at once start one daemon.
Where systemd runs and has our unit, systemd starts it; otherwise it is started here, detached.
Readiness comes through a pipe: a line ``ready``, or a JSON error, or the end of the pipe.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time

from twofold.errors import TimedOut, TwofoldError, Unavailable, from_dict
from twofold.model.paths import Paths

READY_TIMEOUT_S = 60.0
LOG_LINES = 12
UNIT_DIRS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")


def ensure_daemon(paths: Paths) -> None:
    """Return when a daemon of this root accepts connections; raises Unavailable with its log."""
    if os.geteuid() != 0:
        raise Unavailable(
            f"no daemon runs for {paths.root!r} and only root can start one",
            hint="sudo systemctl start twofold (or once: sudo twofold list)",
        )
    os.makedirs(paths.run, mode=0o711, exist_ok=True)
    lock = os.open(f"{paths.run}/launch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if answers(paths.api_socket):
            return  # somebody else was faster
        if paths.is_default and has_systemd_unit():
            _start_with_systemd(paths)
        else:
            _start_detached(paths)
    finally:
        os.close(lock)


def answers(path: str) -> bool:
    """Whether something accepts connections at this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def has_systemd_unit() -> bool:
    return os.path.isdir("/run/systemd/system") and any(
        os.path.exists(f"{directory}/twofold.service") for directory in UNIT_DIRS
    )


def _start_with_systemd(paths: Paths) -> None:
    done = subprocess.run(
        ["systemctl", "start", "twofold"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Unavailable(
            f"systemd could not start the daemon: {done.stderr.strip()}",
            hint="journalctl -u twofold -n 50",
        )
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not answers(paths.api_socket):
        # A unit that cannot notify counts as started at its exec: nothing to wait on but this.
        if time.monotonic() > deadline:
            raise TimedOut(
                f"the daemon started by systemd is not ready after {READY_TIMEOUT_S:.0f} s",
                hint="journalctl -u twofold -n 50",
            )
        time.sleep(0.05)


def _start_detached(paths: Paths) -> None:
    """Own session, no inherited descriptors, output to ``daemon.log``."""
    log_path = f"{paths.run}/daemon.log"
    log = os.open(
        log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    log_start = os.fstat(log).st_size
    ready, ready_child = os.pipe2(os.O_CLOEXEC)
    try:
        # -P: the current directory must not be able to replace a module.
        command = [sys.executable, "-P", "-m", "twofold.daemon", "--root", paths.root]
        child = subprocess.Popen(
            [*command, "--ready-fd", str(ready_child)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(ready_child,),
            start_new_session=True,
            cwd="/",
            umask=0o022,
        )
        os.close(ready_child)
        ready_child = -1
        answer = _read_answer(ready)
    finally:
        for descriptor in (log, ready, ready_child):
            if descriptor >= 0:
                os.close(descriptor)
    child.returncode = 0  # detached: it outlives us, nobody waits for it here
    if answer.startswith(b"ready"):
        return
    said = _error_in(answer)
    if said:
        raise said
    raise Unavailable(
        "the daemon could not start" + _last_lines(log_path, log_start),
        hint=f"tail -n 50 {log_path}",
    )


def _read_answer(descriptor: int) -> bytes:
    """One line from the ready pipe, or what came before its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + READY_TIMEOUT_S
    answer = b""
    while b"\n" not in answer:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimedOut(
                f"the daemon did not become ready within {READY_TIMEOUT_S:.0f} s",
                hint="twofold serve",
            )
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        answer += piece
    return answer


def _error_in(answer: bytes) -> TwofoldError | None:
    try:
        data = json.loads(answer)
        return from_dict(data.get("error", data))
    except (ValueError, AttributeError):
        return None


def _last_lines(path: str, start: int) -> str:
    """What this start of the daemon wrote, its last lines only."""
    with open(path, "rb") as file:
        file.seek(max(start, os.fstat(file.fileno()).st_size - 16384))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return "".join(f"\n  {line}" for line in lines[-LOG_LINES:])
