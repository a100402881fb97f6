"""Start a container's first process in its namespaces, or another one in those of a container.

New namespaces come with clone3. To join some, a helper process goes there first and clones the
process as the caller's own child (CLONE_PARENT): the caller itself never leaves the host's
namespaces, in which it runs hooks and writes files.
"""

from __future__ import annotations

import os

from twofold.errors import RuntimeFailed, TwofoldError, from_dict
from twofold.guest import jsontext
from twofold.linux import process, sockets
from twofold.runtime import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from twofold.runtime.namespaces import Namespaces

# Made by the process itself, after it has entered its control group: that becomes the root.
_LATER = ("cgroup",)


def spawn(
    wanted: Namespaces,
    *,
    opened: Mapping[str, int],
    time_offsets: Mapping[str, tuple[int, int]],
    clone: Callable[[int], tuple[int, int]],
    before: Callable[[int], None],
) -> tuple[int, int]:
    """Like fork: (pid, pidfd) in the caller, (0, -1) in the new process.

    ``opened`` are the namespaces to join (``namespaces.open_joined``). ``clone`` makes a process
    that is born in the container's control group (``Group.clone``). ``before`` is run in the
    process that joins, before it does; its argument is a descriptor to leave open.
    """
    if not opened and "time" not in wanted.new:
        try:
            return clone(wanted.new_flags(without=_LATER))
        except OSError as error:
            raise _no_namespaces(wanted, error) from error
    flags = wanted.new_flags(without=(*_LATER, "time"))

    def enter() -> None:
        namespaces.join(dict(opened))
        if "time" in wanted.new:
            process.unshare(process.CLONE_NEWTIME)
            _write_time_offsets(time_offsets)

    return _through_helper(enter, flags, clone, before)


def spawn_beside(
    pidfd: int,
    flags: int,
    *,
    user: bool,
    clone: Callable[[int], tuple[int, int]],
    before: Callable[[int], None],
) -> tuple[int, int]:
    """Like fork, in the namespaces ``flags`` of the process behind ``pidfd``."""

    def enter() -> None:
        process.setns(pidfd, flags)
        if user:
            namespaces.become_root()

    return _through_helper(enter, 0, clone, before)


def _no_namespaces(wanted: Namespaces, error: OSError) -> RuntimeFailed:
    kinds = ", ".join(sorted(wanted.new))
    return RuntimeFailed(
        f"cannot make the namespaces {kinds}: {os.strerror(error.errno or 0)}",
        hint="an unprivileged user needs a user namespace among them; see also "
        "/proc/sys/user/max_user_namespaces",
    )


def _through_helper(
    enter: Callable[[], None],
    flags: int,
    clone: Callable[[int], tuple[int, int]],
    before: Callable[[int], None],
) -> tuple[int, int]:
    ours, theirs = sockets.pair()
    helper, helper_fd = clone(0)
    if helper == 0:
        ours.close()
        try:
            before(theirs.fileno())
            enter()
            pid, pidfd = process.clone(flags | process.CLONE_PARENT)
            if pid == 0:
                theirs.close()
                return 0, -1
            sockets.send_bytes(theirs, jsontext.dumps({"pid": pid}), (pidfd,))
        except BaseException as error:
            tell_failure(theirs, error)
        os._exit(0)
    theirs.close()
    try:
        data, fds, _ = sockets.receive_bytes(ours)
    finally:
        os.waitpid(helper, 0)
        os.close(helper_fd)
        ours.close()
    message = jsontext.loads(data) if data else {}
    if "pid" in message:
        return int(message["pid"]), fds[0]
    if "error" in message:
        raise from_dict(message["error"])
    raise RuntimeFailed(
        "the process that joins namespaces was killed", hint="try it again; dmesg | tail tells why"
    )


def tell_failure(sync: socket.socket, error: BaseException) -> None:
    """Send what went wrong to the runtime, as a sentence."""
    if not isinstance(error, TwofoldError):
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        error = RuntimeFailed(reason)
    try:
        sockets.send_bytes(sync, jsontext.dumps({"error": error.to_dict()}))
    except OSError:
        pass  # the runtime is gone; so shall we be


def _write_time_offsets(offsets: Mapping[str, tuple[int, int]]) -> None:
    lines = "".join(f"{clock} {seconds} {nano}\n" for clock, (seconds, nano) in offsets.items())
    if not lines:
        return
    fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, lines.encode("ascii"))
    except OSError as error:
        raise RuntimeFailed(
            f"linux.timeOffsets {lines.strip()!r} were refused: {error.strerror}",
            hint="no clock may become negative or leave the kernel's range",
        ) from error
    finally:
        os.close(fd)
