"""The image's own init as PID 1: what it needs before, how it starts, how it is asked to end."""

import os
import time

from twofold.guest import configure
from twofold.guest.boot import MS_NODEV, MS_NOSUID
from twofold.guest.lean import signal
from twofold.guest.session import take_identity
from twofold.linux.mount import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_SYSTEMD_DIRS = ("/lib/systemd", "/usr/lib/systemd")
_UNITS = "/run/systemd/system"
_SETTINGS = "/run/systemd/system.conf.d/00-twofold.conf"
_SIGRTMIN_POWER_OFF = 34 + 4  # systemd(1): SIGRTMIN+4 powers off


def prepare(path: str) -> None:
    """What an init expects of a machine and an image made for containers lacks.

    systemd is told to say on the console what it starts, as in a container: it would not, for
    ``quiet`` on the kernel's command line. The image's own setting has the last word.

    Without udev no device unit ever becomes active, and systemd would wait 90 seconds for the
    console's before it calls itself running; so there the console gets the login that containers
    have, which waits for no device.
    """
    if os.path.basename(os.path.realpath(path)) != "systemd":
        return
    udev = any(os.path.exists(f"{base}/systemd-udevd") for base in _SYSTEMD_DIRS)
    try:
        mount("tmpfs", "/run", fstype="tmpfs", flags=MS_NOSUID | MS_NODEV, data="mode=0755")
        configure.replace_file(_SETTINGS, "[Manager]\nShowStatus=yes\n")
        if not udev:
            os.makedirs(f"{_UNITS}/getty.target.wants", mode=0o755)
            for line in ("ttyS0", "ttyAMA0"):  # of a PC, of an Arm
                os.symlink("/dev/null", f"{_UNITS}/serial-getty@{line}.service")
            login = "console-getty.service"
            os.symlink(f"/lib/systemd/system/{login}", f"{_UNITS}/getty.target.wants/{login}")
    except OSError:
        pass  # it boots all the same, only later


def leave_to(
    path: str, argv: list[str], environment: dict[str, str], *, process: "dict[str, Any]"
) -> str:
    """Fork: the caller, PID 1, becomes the init, and the child goes on as the agent.

    ``process`` says what the user has taken from the init, and so from all that it starts. Returns,
    in the child: why the init did not start, or nothing.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        _exec(path, argv, environment, write, process=process)
    os.close(write)
    os.setsid()
    reason = os.read(read, 4096).decode("utf-8", "replace")
    os.close(read)
    return reason


def _exec(
    path: str,
    argv: list[str],
    environment: dict[str, str],
    error_fd: int,
    *,
    process: "dict[str, Any]",
) -> "NoReturn":
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
        for fd in range(3):
            os.dup2(console, fd)
        take_identity(process, 0, 0, [])
        os.execve(path, argv, environment)
    except OSError as error:
        os.write(error_fd, f"{path}: {error.strerror}".encode())
        os.close(error_fd)
        while True:  # PID 1 must not end; the agent turns the machine off
            signal.pause()


def ask_to_power_off() -> bool:
    """Each init has its own word for it; the wrong one would do nothing or reboot.

    False when none is known: then the power is simply turned off.
    """
    if os.path.isdir(_UNITS):
        os.kill(1, _SIGRTMIN_POWER_OFF)
        return True
    if os.path.basename(os.path.realpath("/proc/1/exe")).startswith(("busybox", "openrc-init")):
        os.kill(1, signal.SIGUSR2)
        return True
    for command in ("/sbin/poweroff", "/usr/sbin/poweroff"):
        if os.access(command, os.X_OK):
            if os.fork() == 0:
                try:
                    os.execv(command, [command])
                finally:
                    os._exit(127)
            return True
    return False


def kill_everything() -> None:
    """Before the power goes: nothing may write any more."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        pass
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
