"""By which signal the init of a container powers off, and what the kernel says when it has: each
has its own word, and another's does nothing. Behind the other wall the agent knows
(``guest/init.py``).
"""

import os
import signal

from twofold.instance import privileges
from twofold.instance.record import Record

# By the program that is process 1. What ctrl-alt-del does is what the last three have: a restart
# in order, which in a container is the end of it. runit's warns for 14 s before.
_WORDS = {
    "busybox": "SIGUSR2",
    "init": "SIGINT",
    "openrc-init": "SIGINT",
    "runit": "SIGINT",
}
# reboot(2) in a PID namespace ends its first process as if by a signal.
_POWERED_OFF, _RESTARTED = 128 + signal.SIGINT, 128 + signal.SIGHUP


def stop_signal(record: Record) -> str:
    """What asks the payload to end, an init or not."""
    if record.main is None:
        return "SIGTERM"
    if not _is_init_of_container(record) or not record.pid:
        return record.main.stop_signal
    try:
        program = os.path.basename(os.readlink(f"/proc/{record.pid}/exe"))
    except OSError:
        return record.main.stop_signal
    return _WORDS.get(program, record.main.stop_signal)


def exit_code(record: Record) -> int | None:
    """Of an instance that has ended. An init that has powered off, or has been asked to end and
    restarted, has done well; one that restarts by itself has not said that it is over."""
    code: int | None = (record.exit_event or {}).get("exit_code")
    if _is_init_of_container(record):
        asked = record.intent != "running"
        if code == _POWERED_OFF or (asked and code == _RESTARTED):
            return 0
    return code


def _is_init_of_container(record: Record) -> bool:
    return record.spec.system and not privileges.is_machine(record.spec)
