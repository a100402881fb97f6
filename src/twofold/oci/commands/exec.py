"""``exec``: run another program in a running container."""

from __future__ import annotations

import os

from twofold.errors import IllegalState, InvalidInput, Unsupported
from twofold.oci import config, console, document, foreground, joining, lookup, start
from twofold.oci import process as process_parser
from twofold.oci.arguments import FLAG, MANY, VALUE, Option
from twofold.oci.create import check_preserved, filter_program, write_pid_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from twofold.oci.arguments import Values
    from twofold.oci.lookup import Found
    from twofold.oci.session import Session

OPTIONS = {
    "process": Option(VALUE, "file with the process as JSON", short="p", meta="FILE"),
    "tty": Option(FLAG, "with a terminal", short="t"),
    "detach": Option(FLAG, "do not wait for the program's end", short="d"),
    "cwd": Option(VALUE, "working directory", meta="DIR"),
    "env": Option(MANY, "environment entry, may be repeated", short="e", meta="NAME=VALUE"),
    "user": Option(VALUE, "user and group as numbers", short="u", meta="UID[:GID]"),
    "additional-gids": Option(MANY, "further group, may be repeated", short="g", meta="GID"),
    "cap": Option(MANY, "further capability, may be repeated", short="c", meta="NAME"),
    "no-new-privs": Option(FLAG, "set-user-ID programs give no rights"),
    "apparmor": Option(VALUE, "AppArmor profile", meta="PROFILE"),
    "process-label": Option(VALUE, "SELinux label", meta="LABEL"),
    "cgroup": Option(MANY, "refused: it always runs in the container's group", meta="PATH"),
    "ignore-paused": Option(FLAG, "also in a paused container: it runs when that is resumed"),
    "pid-file": Option(VALUE, "write the process id there", meta="FILE"),
    "console-socket": Option(VALUE, "unix socket that receives the terminal", meta="PATH"),
    "preserve-fds": Option(VALUE, "pass on this many descriptors after stderr", default="0"),
}
OPERANDS = "ID PROGRAM [ARGUMENT …]"
_ID_LIMIT = 2**32 - 2


def run(values: Values, rest: list[str], session: Session) -> int:
    if not rest:
        raise InvalidInput("exec takes a container id", hint="twofold-oci exec ID PROGRAM")
    if values.given("cgroup"):
        raise Unsupported(
            f"--cgroup {values.text('cgroup')!r}: groups below the container's are not supported",
            hint="leave the option out",
        )
    preserved = values.number("preserve-fds", 0, 1024)
    check_preserved(preserved)
    detached = values.flag("detach")
    with lookup.find(session.root, rest[0]) as found:
        _check_status(found, ignore_paused=values.flag("ignore-paused"))
        bundle = document.parse(found.container.read_file("config.json"), "config.json")
        linux = bundle.get("linux")
        plan = process_parser.parse(
            _process(values, rest[1:], bundle),
            personality=linux.get("personality") if linux is not None else None,
        )
        console_socket = values.text("console-socket")
        console.check(terminal=plan.terminal, console_socket=console_socket, detached=detached)
        if not detached:
            foreground.hold_signals()
        seccomp = config.seccomp_of(bundle)
        group = found.group_to_enter()
        joined = joining.join(
            found,
            session,
            plan=plan,
            seccomp=seccomp,
            filter_program=filter_program(seccomp),
            group=group,
            console_socket=console_socket,
            foreground=not detached,
            preserved=preserved,
        )
        try:
            start.see_exec(joined.sync, joined.pidfd, session, seccomp=seccomp, record=found.record)
        except BaseException:
            joining.discard(joined.pid, joined.pidfd)
            raise
    if values.text("pid-file"):
        write_pid_file(os.path.abspath(values.text("pid-file")), joined.pid)
    if detached:
        return 0
    return foreground.stay(joined.pid, joined.pidfd, terminal=joined.terminal)


def _check_status(found: Found, *, ignore_paused: bool) -> None:
    if found.observed.status == "paused" and not ignore_paused:
        raise IllegalState(
            f"container {found.record.id!r} is paused: nothing would run",
            hint="resume it first, or use --ignore-paused",
        )
    found.require("running", "created", "paused", verb="exec")


def _process(values: Values, words: list[str], bundle: document.Node) -> document.Node:
    """The file of --process, or the bundle's own process with the options' changes."""
    path = values.text("process")
    if path:
        if words:
            raise InvalidInput(f"--process {path!r} and the program {words[0]!r}: give one of both")
        return document.parse(_read(path), path)
    if not words:
        raise InvalidInput("exec takes a program to run", hint="twofold-oci exec ID PROGRAM")
    process = dict(bundle.need("process").value)
    process["args"] = words
    process["terminal"] = values.flag("tty")
    process.pop("consoleSize", None)
    if values.text("cwd"):
        process["cwd"] = values.text("cwd")
    process["env"] = [*(process.get("env") or ()), *values.many("env")]
    if values.flag("no-new-privs"):
        process["noNewPrivileges"] = True
    for option, key in (("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")):
        if values.text(option):
            process[key] = values.text(option)
    _change_user(process, values)
    if values.many("cap"):
        process["capabilities"] = _with_capabilities(process, values.many("cap"))
    return document.Node(process, "process")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(document.LIMIT_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"--process {path!r}: {error.strerror}") from error


def _change_user(process: dict[str, Any], values: Values) -> None:
    user = dict(process.get("user") or {})
    text = values.text("user")
    if text:
        uid, separator, gid = text.partition(":")
        user = {"uid": _number("--user", uid), "gid": _number("--user", gid) if separator else 0}
        process.get("env", [])[:] = [e for e in process["env"] if not e.startswith("HOME=")]
    if values.many("additional-gids"):
        given = [_number("--additional-gids", gid) for gid in values.many("additional-gids")]
        user["additionalGids"] = [*user.get("additionalGids", ()), *given]
    process["user"] = user


def _number(option: str, text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _ID_LIMIT:
        return int(text)
    raise InvalidInput(f"{option}: {text!r} is not an id", hint="give a number, as in 1000:1000")


def _with_capabilities(process: dict[str, Any], names: list[str]) -> dict[str, list[str]]:
    sets = dict(process.get("capabilities") or {})
    for kind in ("bounding", "effective", "permitted"):
        sets[kind] = [*dict.fromkeys([*(sets.get(kind) or ()), *names])]
    return sets
