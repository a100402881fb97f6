"""An exec as the keeper sees it, with real processes in the place of the container's."""

import os
import signal
import socket
import subprocess
from types import SimpleNamespace

from twofold.runtime import wire
from twofold.runtime.deposit import Vault
from twofold.runtime.loop import Loop
from twofold.runtime.visitor import JoinedProcess


def test_a_signal_that_is_ahead_of_the_helpers_message_arrives() -> None:
    loop = Loop()
    codes: list[int] = []
    helper = subprocess.Popen(["true"])
    inside = subprocess.Popen(["sleep", "60"])
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def ended(code: int) -> None:
        codes.append(code)
        loop.stop()

    session = SimpleNamespace(send_signal=None)
    visit = JoinedProcess(
        *(loop, Vault(loop, None, lost=lambda: None), session, helper.pid, near),
        *(lambda error: None, ended),
    )
    session.send_signal(signal.SIGTERM)  # the client at the door was quicker
    pidfd = os.pidfd_open(inside.pid)
    wire.send(far, {"pid": inside.pid}, (pidfd,))
    os.close(pidfd)
    far.close()
    loop.call_later(10, loop.stop)
    loop.run()
    inside.kill()
    assert codes == [128 + signal.SIGTERM]
    del visit
