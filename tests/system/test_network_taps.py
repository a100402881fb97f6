"""Taps end in the background, and are there again when the next start wants them."""

import os
import secrets
import time
from collections.abc import Callable

import pytest

from twofold.network.taps import Taps

pytestmark = pytest.mark.system


@pytest.fixture
def name() -> str:
    return f"tft{secrets.token_hex(4)}"


def is_there(name: str) -> bool:
    return os.path.exists(f"/sys/class/net/{name}")


def soon(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not what() and time.monotonic() < deadline:
        time.sleep(0.005)
    return what()


def test_it_outlives_the_machine_and_ends_with_the_instance(name: str) -> None:
    taps = Taps()
    machines = taps.open("one", name, vnet_header=True)
    os.close(machines)
    assert is_there(name)  # nobody who closes it has to wait for the kernel
    taps.end("one")
    assert soon(lambda: not is_there(name))
    taps.end("one")


def test_a_machine_that_lives_on_keeps_it(name: str) -> None:
    """As when the firewall refused something, or the daemon ends."""
    taps = Taps()
    machines = taps.open("one", name, vnet_header=False)
    taps.end("one")
    time.sleep(0.1)
    assert is_there(name)
    os.close(machines)
    assert soon(lambda: not is_there(name))


def test_the_next_start_does_not_meet_the_last_one(name: str) -> None:
    taps = Taps()
    for _ in range(20):
        os.close(taps.open("one", name, vnet_header=True))
        taps.end("one")
    # Without an end, too: a start that failed is followed by another.
    os.close(taps.open("one", name, vnet_header=True))
    os.close(taps.open("one", name, vnet_header=True))
    assert is_there(name)
    taps.end("one")
    assert soon(lambda: not is_there(name))
