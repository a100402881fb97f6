"""What is done through ``qemu-guest-agent``: exec, copies, freezing, what it knows. See
``monitor_agent_work`` for the steps.

Its answers come from the guest: each is checked for its kind here, and bounded by the port. It runs
commands as root, with all output at the end, at most 3 MiB of it; it has no terminals and does not
know users. Copies are made by the guest's own ``tar``, in a folder of /tmp that only root may read.
"""

import binascii
import os
import posixpath
import signal
from collections.abc import Generator
from typing import Any

from twofold.errors import GuestFailed, InvalidInput, NotFound, RuntimeFailed, Unsupported
from twofold.hypervisor.monitor_agent_port import NAME, Ask, RefusedError
from twofold.hypervisor.monitor_agent_work import (
    LeftError,
    Opened,
    Put,
    Script,
    Step,
    Take,
    Wait,
    line,
)
from twofold.hypervisor.monitor_qemu import printable

STDIN_LIMIT_BYTES = 2 << 20
_OUTPUT_LINE_BYTES = 4 << 20
_PIECE_BYTES = 196608  # a multiple of 3
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 1.0
_FREEZE_S, _THAW_S = 18.0, 8.0
_MOST_ADDRESSES = 64

_Steps = Generator[Step, Any, Any]


def of(request: dict[str, Any]) -> Script:
    """The script for what a client of the monitor asks for. Raises InvalidInput, Unsupported."""
    kind = request.get("kind")
    if kind == "exec":
        return _exec(dict(request["process"]))
    if kind == "archive":
        out = request.get("direction") == "out"
        return _tar_out(str(request["path"])) if out else _tar_in(str(request["path"]))
    words = request.get("words")
    if request.get("what") == "freeze" and isinstance(words, dict):
        return _freeze(float(words["timeout_s"]))
    if request.get("what") == "ping":
        return _ping()
    if request.get("what") == "agent":
        return _about()
    raise InvalidInput(f"unknown errand {request.get('what')!r}")


# -- exec -------------------------------------------------------------------------------------


def _exec(process: dict[str, Any]) -> Script:
    argv, tty = [str(word) for word in process["argv"]], process.get("tty")
    if tty:
        raise Unsupported(f"{NAME} has no terminals", hint="leave -t out, or: twofold console NAME")
    if process.get("user") not in ("", "root", "0", "0:0", "root:root"):
        raise Unsupported(
            f"{NAME} runs commands as root, not as {process['user']!r}",
            hint="leave --user out, or: su inside",
        )
    env = [str(word) for word in process.get("env") or ()]
    if env:  # the agent would take it for the whole environment
        argv = ["env", *env, *argv]
    cwd = str(process.get("cwd") or "")
    if cwd:
        argv = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", cwd, *argv]
    return _run_for_client(argv)


def _run_for_client(argv: list[str]) -> Script:
    yield Ask("guest-ping")
    yield Opened()
    given = bytearray()
    while chunk := (yield Take()):
        given += chunk
        if len(given) > STDIN_LIMIT_BYTES:
            raise InvalidInput(
                f"more than {STDIN_LIMIT_BYTES >> 20} MiB of input: {NAME} takes it all at once",
                hint="twofold cp FILE NAME:/tmp",
            )
    try:
        pid = yield from _spawn(argv, bytes(given))
    except RefusedError as error:
        code = _code_of(error.sentence)
        if not code:
            raise
        yield Put(channel=2, data=f"twofold: {error.sentence}\n".encode())
        return code
    try:
        status = yield from _wait(pid)
    except LeftError:
        # Nobody waits any more. As a terminal that is closed would do.
        yield from _kill(pid, signal.SIGHUP)
        raise
    for channel, word in ((1, "out-data"), (2, "err-data")):
        data = _bytes(status.get(word))
        if data:
            yield Put(channel=channel, data=data)
    if status.get("out-truncated") or status.get("err-truncated"):
        yield Put(channel=2, data=f"twofold: {NAME} has cut the output\n".encode())
    return _exit_code(status)


def _code_of(sentence: str) -> int:
    """As a shell has it for a command that could not be run; 0: it was something else."""
    if "No such file" in sentence or "cannot find" in sentence:
        return 127
    if "Permission denied" in sentence or "Exec format" in sentence:
        return 126
    return 0


def _spawn(argv: list[str], given: bytes = b"") -> _Steps:
    arguments: dict[str, Any] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
    if given:
        arguments["input-data"] = _text(given)
    started = yield Ask("guest-exec", arguments, timeout_s=30.0)
    pid = started["pid"]
    if type(pid) is not int:
        raise ValueError(pid)
    return pid


def _wait(pid: int) -> _Steps:
    """Until it has ended; signals that are asked for meanwhile are passed on."""
    delay = _FIRST_LOOK_S
    while True:
        ask = Ask("guest-exec-status", {"pid": pid}, limit_bytes=_OUTPUT_LINE_BYTES)
        status = yield ask
        if not isinstance(status, dict):
            raise ValueError(status)
        if status.get("exited") is True:
            return status
        number = yield Wait(seconds=delay)
        delay = min(2 * delay, _LAST_LOOK_S)
        if number:
            yield from _kill(pid, number)
            delay = _FIRST_LOOK_S


def _kill(pid: int, number: int) -> _Steps:
    """By the guest's own program: the agent knows no signals."""
    try:
        killer = yield from _spawn(["kill", f"-{number}", str(pid)])
        yield from _reap(killer)
    except RefusedError:
        return


def _reap(pid: int) -> _Steps:
    """For a short command; its status. Not to be interrupted: it tidies up."""
    delay = _FIRST_LOOK_S
    while True:
        ask = Ask("guest-exec-status", {"pid": pid}, limit_bytes=_OUTPUT_LINE_BYTES)
        status = yield ask
        if status.get("exited") is True:
            return status
        yield Wait(seconds=delay)
        delay = min(2 * delay, _LAST_LOOK_S)


def _exit_code(status: dict[str, Any]) -> int:
    code, number = status.get("exitcode"), status.get("signal")
    if type(number) is int and 0 < number < 127:
        return 128 + number
    if type(code) is not int:
        raise ValueError(code)
    return code & 0xFF


# -- copies -----------------------------------------------------------------------------------


def _tar_out(path: str) -> Script:
    yield Ask("guest-ping")
    yield Opened()
    folder = yield from _folder()
    try:
        trimmed = posixpath.normpath(path)
        name = posixpath.basename(trimmed) or "."
        if path.endswith("/") and name != ".":  # a link at its end is followed
            where, what = f"{trimmed}/..", name
            if (yield from _call(["test", "-L", trimmed])) == 0:
                where, what = trimmed, "."
        else:
            where, what = posixpath.dirname(trimmed), name
        yield from _tar(["-C", where, "-cf", f"{folder}/copy", "--", what], path)
        handle = yield from _open(f"{folder}/copy", "rb")
        try:
            while True:
                arguments = {"handle": handle, "count": _PIECE_BYTES}
                answer = yield Ask("guest-file-read", arguments, limit_bytes=2 * _PIECE_BYTES)
                data = _bytes(answer.get("buf-b64"))
                if data and not (yield Put(channel=1, data=data)):
                    return 0  # nobody reads any more
                if answer.get("eof") is True or not data:
                    return 0
        finally:
            yield Ask("guest-file-close", {"handle": handle})
    finally:
        yield from _call(["rm", "-rf", folder])


def _tar_in(path: str) -> Script:
    yield Ask("guest-ping")
    yield Opened()
    folder = yield from _folder()
    try:
        handle = yield from _open(f"{folder}/copy", "wb")
        try:
            while chunk := (yield Take()):
                while chunk:
                    arguments = {"handle": handle, "buf-b64": _text(chunk[:_PIECE_BYTES])}
                    answer = yield Ask("guest-file-write", arguments)
                    count = answer["count"]
                    if type(count) is not int or not 0 < count <= len(chunk):
                        raise ValueError(count)
                    chunk = chunk[count:]
            yield Ask("guest-file-flush", {"handle": handle})
        finally:
            yield Ask("guest-file-close", {"handle": handle})
        yield from _tar(["-C", path, "-xf", f"{folder}/copy"], path)
        return 0
    finally:
        yield from _call(["rm", "-rf", folder])


def _folder() -> _Steps:
    folder = f"/tmp/.twofold-{os.urandom(16).hex()}"
    if (yield from _call(["mkdir", "-m", "700", folder])) != 0:
        raise RuntimeFailed(
            f"the guest cannot make a folder {folder!r} for the copy", hint="df -h /tmp, inside"
        )
    return folder


def _open(path: str, mode: str) -> _Steps:
    handle = yield Ask("guest-file-open", {"path": path, "mode": mode})
    if type(handle) is not int:
        raise ValueError(handle)
    return handle


def _call(argv: list[str]) -> _Steps:
    """Exit code of a short command of ours; 127 where the guest does not have it."""
    try:
        pid = yield from _spawn(argv)
    except RefusedError as error:
        code = _code_of(error.sentence)
        if not code:
            raise
        return code
    return _exit_code((yield from _reap(pid)))


def _tar(words: list[str], path: str) -> _Steps:
    try:
        pid = yield from _spawn(["tar", *words])
    except RefusedError as error:
        if _code_of(error.sentence):
            raise Unsupported("the guest has no tar, by which files are copied") from None
        raise
    status = yield from _wait(pid)
    if _exit_code(status) == 0:
        return
    said = printable(_bytes(status.get("err-data")).decode("utf-8", "replace"))[:500].strip()
    if "No such file" in said or "can't change dir" in said:
        raise NotFound(f"{path!r} is not there", hint="check the path inside")
    raise RuntimeFailed(f"tar in the guest failed: {said}", hint="df -h, inside")


# -- errands ----------------------------------------------------------------------------------


def _freeze(timeout_s: float) -> Script:
    """Answers as ``guest/freeze.py`` does: a line when frozen, one when let go of."""
    yield Ask("guest-ping")
    yield Opened()
    try:
        count = yield Ask("guest-fsfreeze-freeze", timeout_s=_FREEZE_S)
        if type(count) is not int or count < 1:
            raise GuestFailed(f"{NAME} froze no file system", hint="twofold console NAME")
        yield Put(channel=1, data=line({"frozen": True}))
        told = yield Wait(seconds=timeout_s)
    finally:
        # Also where freezing failed: half of them may be frozen.
        thawed = yield Ask("guest-fsfreeze-thaw", timeout_s=_THAW_S)
    held = told != 0 and type(thawed) is int and thawed > 0
    yield Put(channel=1, data=line({"held": held}))
    return 0


def _ping() -> Script:
    yield Ask("guest-ping")
    yield Opened()
    yield Put(channel=1, data=line({}))
    return 0


def _about() -> Script:
    """{"agent": version, "hostname", "system", "addresses": [..]}, of what it tells."""
    info = yield Ask("guest-info")
    yield Opened()
    found: dict[str, Any] = {"agent": _word(info.get("version"))}
    for name, command, key in (
        ("hostname", "guest-get-host-name", "host-name"),
        ("system", "guest-get-osinfo", "pretty-name"),
    ):
        try:
            found[name] = _word((yield Ask(command)).get(key))
        except RefusedError:
            continue
    try:
        found["addresses"] = _addresses((yield Ask("guest-network-get-interfaces")))
    except RefusedError:
        pass
    yield Put(channel=1, data=line(found))
    return 0


def _addresses(interfaces: Any) -> list[str]:
    found = []
    for interface in interfaces if isinstance(interfaces, list) else ():
        name = _word(interface.get("name"))
        for address in interface.get("ip-addresses") or ():
            words = f"{_word(address.get('ip-address'))}/{address.get('prefix')}"
            if name.startswith("lo") or words.startswith(("127.", "::1/")):
                continue
            found.append(f"{name} {printable(words)[:64]}")
    return found[:_MOST_ADDRESSES]


def _word(value: Any) -> str:
    return printable(value)[:120] if isinstance(value, str) else ""


def _bytes(value: Any) -> bytes:
    if value in (None, ""):
        return b""
    if not isinstance(value, str):
        raise TypeError("no base64")
    return binascii.a2b_base64(value, strict_mode=True)


def _text(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")
