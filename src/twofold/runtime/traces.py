"""What the keeper leaves of an instance in its run directory, which is in memory and root's alone.

plan.json      the plan as it was given, for who asks what was really made
running.json   how to find it again, should keeper and holder be killed together
exit.json      how it ended
"""

from __future__ import annotations

import os

from twofold.errors import NotFound
from twofold.guest import jsontext
from twofold.linux import exits
from twofold.record import replace
from twofold.runtime import plan as plans
from twofold.runtime.plan import SandboxPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PLAN, RUNNING, EXIT = "plan.json", "running.json", "exit.json"


def write_plan(plan: SandboxPlan) -> None:
    """Of a sandbox that is being made: what an earlier life of it left is gone."""
    for name in (RUNNING, EXIT):
        try:
            os.unlink(f"{plan.run_dir}/{name}")
        except OSError:
            pass
    _write(plan.run_dir, PLAN, plan.to_dict())


def read_plan(run_dir: str) -> dict[str, Any]:
    """Raises NotFound."""
    found = read(run_dir, PLAN)
    if found is None:
        raise NotFound(f"the plan of this instance is not in {run_dir!r} any more")
    return found


def update_plan(plan: SandboxPlan) -> None:
    """The limits have changed; the rest is as it was."""
    found = read(plan.run_dir, PLAN)
    if found is not None:
        whole = replace(plans.from_dict(found), cgroup=plan.cgroup)
        _write(plan.run_dir, PLAN, whole.to_dict())


def write_running(run_dir: str, state: dict[str, Any], pid: int) -> None:
    """``state`` is the entry's deposit without descriptors."""
    pipes = {stream: _pipe(pid, number) for stream, number in (("stdout", 1), ("stderr", 2))}
    record = {**state, "boot": boot(), "start_time": exits.start_time(pid), "pipes": pipes}
    _write(run_dir, RUNNING, record)


def boot() -> str:
    """What tells this boot of the host from any other: process numbers begin anew."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _pipe(pid: int, number: int) -> str:
    """What identifies the pipe behind a descriptor of ``pid``; empty when it is none."""
    try:
        target = os.readlink(f"/proc/{pid}/fd/{number}")
    except OSError:
        return ""
    return target if target.startswith("pipe:") else ""


def open_pipe(pid: int, stream: str, identity: str) -> int:
    """A new read end of an output pipe that ``pid`` holds; -1 when it is not that pipe any more."""
    number = {"stdout": 1, "stderr": 2}[stream]
    if not identity or _pipe(pid, number) != identity:
        return -1
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    if os.readlink(f"/proc/self/fd/{fd}") != identity:
        os.close(fd)
        return -1
    return fd


def write_exit(run_dir: str, record: dict[str, Any]) -> None:
    _write(run_dir, EXIT, record)


def read(run_dir: str, name: str) -> dict[str, Any] | None:
    try:
        with open(f"{run_dir}/{name}", "rb") as file:
            found = jsontext.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _write(run_dir: str, name: str, record: dict[str, Any]) -> None:
    """Atomic. Never raises: what lives must not end because there is no room for a trace of it."""
    if not run_dir:
        return
    temporary = f"{run_dir}/{name}.tmp"
    try:
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(jsontext.dumps(record))
        os.replace(temporary, f"{run_dir}/{name}")
    except OSError:
        pass
