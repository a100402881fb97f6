"""The places a daemon lives in: its directories, its lock, its socket.

One daemon per root: the lock is held as long as the process lives, so it cannot be left behind.
Everything is made with exact modes whatever the umask says. Refuses directories and sockets that
somebody else planted.
"""

import fcntl
import grp
import os
import socket
import stat
import subprocess

from twofold.errors import Conflict, Forbidden, Unavailable
from twofold.model.paths import Paths

GROUP = "twofold"
BACKLOG = 1024
_SYSTEMCTL_TIMEOUT_S = 5.0


def make_directories(paths: Paths) -> None:
    """ROOT 0700 and RUN 0711 with what the daemon needs in them."""
    for path, mode in (
        (paths.root, 0o700),
        (paths.instances, 0o700),
        (paths.cache, 0o700),
        (paths.run, 0o711),
        (f"{paths.run}/instances", 0o711),  # each below it has its own mode
    ):
        os.makedirs(path, mode=mode, exist_ok=True)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise Forbidden(
                f"{path!r} is not a directory of the user {os.geteuid()}",
                hint=f"ls -ld {path}; remove it if it is not yours",
            )
        os.chmod(path, mode)


def take_lock(paths: Paths) -> int:
    """The descriptor that keeps other daemons away from this root. Raises Conflict."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(f"{paths.root}/daemon.lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise Conflict(
            f"a daemon runs for {paths.root!r} already (pid {holder or 'unknown'})",
            hint="twofold version    # asks it",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def listen(paths: Paths) -> tuple[socket.socket, list[str]]:
    """Bind ``api.sock``: 0660, root:twofold. With the lock held. Returns warnings, too."""
    warnings = []
    try:
        gid = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        gid = 0
        warnings.append(f"there is no group {GROUP!r}: only root can connect (groupadd {GROUP})")
    path = paths.api_socket
    _refuse_planted(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    draft = f"{paths.run}/.api.sock.{os.getpid()}"
    try:
        if os.path.lexists(draft):
            os.unlink(draft)
        # Bound under another name and renamed, so nobody connects before owner and mode are right.
        sock.bind(draft)
        os.chown(draft, 0, gid)
        os.chmod(draft, 0o660)
        sock.listen(BACKLOG)
        os.rename(draft, path)
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"cannot listen at {path}: {error.strerror}", hint=f"ls -ld {paths.run} {path}"
        ) from error
    sock.setblocking(False)
    return sock, warnings


def _refuse_planted(path: str) -> None:
    """A socket left by an earlier daemon is replaced; anything else is not ours."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise Forbidden(
            f"{path!r} is there already and is not a socket of this user",
            hint=f"look at it and remove it: ls -l {path}; rm {path}",
        )


def inherited_socket() -> socket.socket | None:
    """The listening socket that systemd opened for us (sd_listen_fds), if there is one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "0")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not count.isdecimal() or int(count) < 1:
        return None
    os.set_inheritable(3, False)
    sock = socket.socket(fileno=3)
    sock.setblocking(False)
    return sock


def tell_ready(ready_fd: int) -> None:
    """Whoever started us waits for this: a line on a pipe, and systemd's notify socket."""
    if ready_fd >= 0:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
    notify("READY=1")


def notify(state: str) -> None:
    address = os.environ.pop("NOTIFY_SOCKET", "")  # the keeper must not inherit it
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            pass  # systemd then notices by itself


def host_goes_down() -> bool:
    """Whether we are being ended because the host is shut down or rebooted, as systemd has it."""
    if not os.path.isdir("/run/systemd/system"):
        return False
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SYSTEMCTL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == b"stopping"


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
