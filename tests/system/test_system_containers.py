"""Containers that run the image's own init, whichever it is."""

import json
import subprocess
import time
from collections.abc import Callable

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
NAME = "busybox-init"


def end(twofold: Runner) -> tuple[str, int]:
    """Waits for it."""
    deadline = time.monotonic() + 30
    while True:
        shown = json.loads(twofold("show", NAME, "--json", check=True).stdout)
        if shown["state"] != "running":
            return shown["state"], shown["exit_code"]
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.shared
def test_an_init_that_is_not_systemd_is_asked_in_its_own_words(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None]
) -> None:
    """And ends by reboot(2), as the first process of a PID namespace; killed it would have 137."""
    try:
        twofold("run", "-d", "--system", "--name", NAME, alpine_image, check=True)
        twofold("stop", NAME, check=True)
        assert end(twofold) == ("stopped", 0)
        assert b"Requesting system poweroff" in twofold("logs", NAME).stdout
        twofold("start", NAME, check=True)
        twofold("exec", NAME, "poweroff")
        assert end(twofold) == ("stopped", 0)
    finally:
        twofold("rm", "-f", NAME)
