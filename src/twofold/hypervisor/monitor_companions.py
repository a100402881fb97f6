"""What runs beside QEMU in rooms of its own, as the monitor sees it: that it has ended, and how.

Nothing is started again: what a TPM that died had promised its guest, a new one would not keep.
Imported by the monitor: standard library only.
"""

import os
import select
from collections.abc import Callable

from twofold.hypervisor.monitor_loop import Loop

_LIFE = "life-"


def error_pipe(fds: dict[str, int]) -> tuple[int, int]:
    """Where QEMU is to write its errors: to the pipe of its companions, where there are any."""
    if "errors" in fds:
        return fds.pop("errors"), fds.pop("errors-in")
    return os.pipe()


def last_words(errors: list[str]) -> str:
    """QEMU's own, which say why it ended: a TPM says goodbye after it."""
    said = [line for line in errors if not line.startswith("swtpm: ")] or errors
    return said[-1] if said else ""


def watch(fds: dict[str, int], loop: Loop, say: Callable[[str], None], *, qemu: int) -> None:
    """``say`` what has become of each, unless QEMU (a pidfd) has ended as well."""
    for key in [key for key in fds if key.startswith(_LIFE)]:
        _watch(fds[key], key.removeprefix(_LIFE), loop, say, qemu=qemu)


def _watch(pidfd: int, name: str, loop: Loop, say: Callable[[str], None], *, qemu: int) -> None:
    def ended() -> None:
        loop.unwatch(pidfd)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        os.close(pidfd)
        if select.select([qemu], [], [], 0.2)[0]:
            return  # it ends with QEMU, as it should
        how = "ended"
        if result is not None and result.si_code != os.CLD_EXITED:
            how = f"was killed by signal {result.si_status}"
        elif result is not None and result.si_status:
            how = f"failed (exit status {result.si_status})"
        say(f"the {name.upper()} of this machine {how}; it has none until its next start")

    loop.watch(pidfd, ended)
