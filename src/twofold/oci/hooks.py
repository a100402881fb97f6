"""Hooks of a bundle: read, and run with the container's state on their stdin.

Where they run (the specification's table):

================  ==========================  =====================================
prestart          runtime's namespaces        after the mounts, before the pivot
createRuntime     runtime's namespaces        after prestart
createContainer   container's namespaces      before the pivot; host's paths
startContainer    container's namespaces      after start, before the program
poststart         runtime's namespaces        after the program was started
poststop          runtime's namespaces        after delete; a failure is only a warning
================  ==========================  =====================================
"""

from __future__ import annotations

import os

from twofold.errors import RuntimeFailed
from twofold.guest import jsontext
from twofold.linux import process
from twofold.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from twofold.oci.document import Node

KINDS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)
_TIMEOUT_LIMIT_S = 1 << 31
_OUTPUT_LIMIT_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Hook:
    """One program. ``timeout_s`` 0: it may take as long as it wants."""

    path: str
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    timeout_s: int = 0


def parse(node: Node | None) -> dict[str, tuple[Hook, ...]]:
    """``hooks`` of a bundle by kind; a kind without hooks is absent."""
    if node is None:
        return {}
    found: dict[str, tuple[Hook, ...]] = {}
    for kind in KINDS:
        given = node.get(kind)
        if given is not None and given.elements():
            found[kind] = tuple(_hook(element) for element in given.elements())
    return found


def _hook(node: Node) -> Hook:
    path = node.need("path").absolute_path()
    args, env, timeout = node.get("args"), node.get("env"), node.get("timeout")
    for entry in env.elements() if env is not None else ():
        if entry.string().find("=") < 1:
            entry.refuse("expected NAME=value")
    return Hook(
        path=path,
        argv=(args.strings() if args is not None else ()) or (path,),
        env=env.strings() if env is not None else (),
        timeout_s=timeout.integer(1, _TIMEOUT_LIMIT_S) if timeout is not None else 0,
    )


def run(kind: str, hooks: tuple[Hook, ...], state: dict[str, Any]) -> None:
    """Run all in order. Raises RuntimeFailed at the first that fails; the rest is not run."""
    text = jsontext.dumps(state)
    for index, hook in enumerate(hooks):
        _run_one(f"{kind} hook {index} ({hook.path})", hook, text)


def run_all(kind: str, hooks: tuple[Hook, ...], state: dict[str, Any]) -> list[str]:
    """Run all, whatever happens to one of them; returns what went wrong."""
    text = jsontext.dumps(state)
    wrong = []
    for index, hook in enumerate(hooks):
        try:
            _run_one(f"{kind} hook {index} ({hook.path})", hook, text)
        except RuntimeFailed as error:
            wrong.append(error.message)
    return wrong


def _run_one(name: str, hook: Hook, state: bytes) -> None:
    # Files in memory rather than pipes: a hook that does not read cannot make us wait, and one
    # that writes without end cannot fill anything that we hold.
    stdin = os.memfd_create("state")
    output = os.memfd_create("output")
    try:
        os.write(stdin, state)
        os.lseek(stdin, 0, os.SEEK_SET)
        pid, pidfd = process.clone(0)
        if pid == 0:
            _become(hook, stdin, output)
        try:
            timed_out = not _wait(pidfd, hook.timeout_s)
            if timed_out:
                _kill_session(pid)
            _, status = os.waitpid(pid, 0)
        finally:
            os.close(pidfd)
        if timed_out:
            raise RuntimeFailed(
                f"{name} did not end within {hook.timeout_s} s and was killed",
                hint="look at the hook, or give it a longer timeout",
                details={"hook": name},
            )
        if status:
            code, number = process.exit_code_of(status)
            how = f"was killed by signal {number}" if number else f"ended with code {code}"
            raise RuntimeFailed(
                f"{name} {how}{_tail(output)}", hint="look at the hook", details={"hook": name}
            )
    finally:
        os.close(stdin)
        os.close(output)


def _tail(output: int) -> str:
    size = os.fstat(output).st_size
    data = os.pread(output, _OUTPUT_LIMIT_BYTES, max(0, size - _OUTPUT_LIMIT_BYTES))
    text = " ".join(data.decode("utf-8", "replace").split())
    return f": {text}" if text else ""


def _wait(pidfd: int, timeout_s: int) -> bool:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000 if timeout_s else None))


def _kill_session(pid: int) -> None:
    for target in (-pid, pid):
        try:
            os.kill(target, 9)
        except ProcessLookupError:
            pass


def _become(hook: Hook, stdin: int, output: int) -> NoReturn:
    """In the child: exec the hook. Its failure is told on the hook's own output."""
    from twofold.runtime import credentials

    try:
        os.setsid()
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        process.close_on_exec({0, 1, 2})
        credentials.reset_signals()
        environment = dict(entry.split("=", 1) for entry in hook.env)
        os.execve(hook.path, list(hook.argv), environment)
    except OSError as error:
        os.write(2, f"{hook.path}: {error.strerror}".encode())
    finally:
        os._exit(127)
