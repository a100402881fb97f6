"""Find again what runs when keeper and holder were killed together: from traces on the disk.

The first process of a sandbox lives on, and holds readers of its own output pipes (see
``Session``), which are opened again through it. Terminals, clients and commands that ran inside
by ``exec`` cannot be had again: that is said in the instance's log and in its ``losses``.
"""

from __future__ import annotations

import os
import sys

from twofold.linux import exits
from twofold.runtime import traces
from twofold.runtime.deposit import Bundle, Deposit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NOTE = "keeper and holder were killed together: some output may be missing here"
_KILLED = "its keeper and the holder were killed together"


def recover(directory: str) -> dict[str, Deposit]:
    """Deposits as a holder would have them, of every instance that has traces in ``directory``."""
    found: dict[str, Deposit] = {}
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return found
    for name in names:
        try:
            deposit = _deposit(f"{directory}/{name}", name)
        except (KeyError, TypeError, ValueError) as error:
            # Not ours, or damaged: the daemon ends what no keeper knows.
            sys.stderr.write(f"the traces in {directory}/{name} make no sense: {error!r}\n")
            continue
        if deposit is not None:
            found[deposit.name] = deposit
    return found


def _deposit(run_dir: str, name: str) -> Deposit | None:
    plan = traces.read(run_dir, traces.PLAN)
    state = traces.read(run_dir, traces.RUNNING)
    if plan is None:
        return None
    if state is None:
        return Deposit.of(f"entry {name}", _unfinished(plan), [])
    ended = traces.read(run_dir, traces.EXIT)
    bundle = Bundle()
    if ended is not None:
        state.update(ended)
    else:
        same_boot = state["boot"] == traces.boot()
        pidfd = _open(int(state["pid"]), int(state["start_time"])) if same_boot else -1
        if pidfd >= 0:
            _resume(state, pidfd, bundle)
        else:
            state["error"] = (
                f"its exit code is unknown: {_KILLED}, and it ended before another came"
            )
            state.update(state="ended", exit_code=None)
    return Deposit.of(f"entry {name}", state, bundle.fds)


def _unfinished(plan: dict[str, Any]) -> dict[str, Any]:
    """One that was being made: to be cleaned up."""
    return {
        "plan": plan,
        "state": "creating",
        "pid": 0,
        "exit_code": None,
        "signal": 0,
        "oom_killed": False,
        "started_at": "",
        "at": "",
        "facts": {},
        "warnings": [],
        "losses": [],
    }


def _open(pid: int, start_time: int) -> int:
    """A pidfd of the process that had this number then; -1 when it has gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    if exits.start_time(pid) != start_time:
        os.close(pidfd)
        return -1
    return pidfd


def _resume(state: dict[str, Any], pidfd: int, bundle: Bundle) -> None:
    pid, stdio = int(state["pid"]), state["plan"]["stdio"]
    terminal = bool(state["plan"]["process"]["tty"])
    relays = []
    for stream, identity in dict(state["pipes"]).items():
        fd = traces.open_pipe(pid, stream, identity) if stdio["log_dir"] else -1
        if fd >= 0:
            relays.append({"stream": stream, "source": bundle.add(fd), "reader": -1})
    lost = ["the commands that ran in it by exec are not known any more"]
    if terminal:
        lost.append("its terminal was hung up")
    elif stdio["log_dir"]:
        lost.append("some of its output may be missing in its log")
    if stdio["ticket"]:
        lost.append("the command that ran it in the foreground has lost it")
    if stdio["keep_stdin_open"]:
        lost.append("its input was closed")
    state.update(
        pidfd=bundle.add(pidfd),
        sync=-1,
        stranger=True,
        losses=[*state["losses"], f"{_KILLED}: {'; '.join(lost)}"],
        notes=[_NOTE] if stdio["log_dir"] else [],
        session={
            "client": None,
            "terminal": -1,
            "stdin": -1,
            "relays": relays,
            "typing": [],
            "attached": [],
        },
    )
