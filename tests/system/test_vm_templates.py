"""Forks of a frozen machine: fast, and each its own."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
# A shape that no other test uses.
ODD = ("run", "--rm", "--vm", "--network", "none", "-m", "161m")
HARDWARE = {"virtio": ["--vm"], "emulated": ["--vm", "--hardware", "emulated"]}
# What two machines that began as one must not have in common.
WHO = """
cat /proc/sys/kernel/random/boot_id
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/uuid
cat /sys/class/net/eth0/address
hostname
ip -4 -o addr show eth0 | awk '{print $4}'
"""
BOOT_ID, RANDOM, UUID, MAC, HOSTNAME, ADDRESS = range(6)


@pytest.fixture(params=list(HARDWARE))
def flags(request: pytest.FixtureRequest) -> list[str]:
    return HARDWARE[request.param]


def templates(twofold: Runner) -> list[dict[str, Any]]:
    """Last used first."""
    found: list[dict[str, Any]] = json.loads(
        twofold("template", "list", "--json", check=True).stdout
    )
    return found


@pytest.mark.shared
def test_forks_are_nobodys_twins(twofold: Runner, alpine_image: str, flags: list[str]) -> None:
    """Three forks, two of them at the same time, and the very first bytes each draws."""
    run = ("run", "--rm", *flags, alpine_image, "sh", "-c", WHO)
    first = twofold(*run, check=True)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: twofold(*run, check=True), range(2)))
    said = [done.stdout.decode().split() for done in (first, *both)]
    assert all(len(words) == 6 for words in said)
    for number in (BOOT_ID, RANDOM, UUID, MAC, HOSTNAME, ADDRESS):
        values = {words[number] for words in said}
        assert len(values) == 3, f"forks share {values}"


@pytest.mark.shared
def test_a_fork_knows_what_time_it_is(twofold: Runner, alpine_image: str) -> None:
    """The template was frozen a while ago; so was its clock."""
    twofold("run", "--rm", "--vm", "--network", "none", alpine_image, "true", check=True)
    time.sleep(2.5)
    done = twofold(
        *("run", "--rm", "--vm", "--network", "none", alpine_image, "date", "+%s"), check=True
    )
    assert abs(time.time() - int(done.stdout)) < 2.5


@pytest.mark.shared
@pytest.mark.parametrize("terminal", [False, True])
def test_the_first_process_was_born_in_the_template(
    twofold: Runner, alpine_image: str, terminal: bool
) -> None:
    """So two forks know it by the same number, and nothing of the agent's is left beside it."""
    run = ["run", "--rm", "--vm", "--network", "none", *(["-t"] if terminal else [])]
    word = ["sh", "-c", "umask; pwd; id -u; tty; echo $$ $PPID $(pgrep -f ^@twofold)"]
    said = []
    for user in ("root", "guest"):
        done = twofold(*run, "--user", user, "--workdir", "/a/new", alpine_image, *word, check=True)
        said.append(done.stdout.decode().split())
    first, second = said
    assert first[:2] == ["0022", "/a/new"]
    assert (first[2], second[2]) == ("0", "405")
    assert first[3] == ("/dev/pts/0" if terminal else "not")
    assert first[-3:] == second[-3:]
    assert first[-2:] == ["1", "1"]


@pytest.mark.shared
def test_a_small_program_is_in_memory_already(twofold: Runner, alpine_image: str) -> None:
    """The image's disk is asked for a large one and the rest of the shell, then no more."""
    asked = "read requests rest < /sys/block/vda/stat; echo $requests"
    line = f"{asked}; scanelf --version >/dev/null; {asked}; getconf PAGESIZE; {asked}"
    words = ("--network", "none", alpine_image, "sh", "-c", line)
    said = twofold("run", "--rm", "--vm", *words, check=True).stdout.split()
    before, large, page_bytes, small = map(int, said)
    assert page_bytes == 4096
    assert before < large == small


@pytest.mark.shared
def test_a_fork_hears_that_it_was_copied_but_not_at_its_birth(
    twofold: Runner, alpine_image: str
) -> None:
    """At birth CONFIG has brought entropy; from a second later on `vmgenid` is heeded."""
    heard = "cat /sys/firmware/acpi/interrupts/gpe05"
    words = ("--network", "none", alpine_image, "sh", "-c", f"{heard}; sleep 2; {heard}")
    first, second = twofold("run", "--rm", "--vm", *words, check=True).stdout.splitlines()[:2]
    assert b" disabled " in first
    assert b" enabled " in second


@pytest.mark.shared
def test_a_fork_has_ipv6_a_second_after_its_birth(twofold: Runner, alpine_image: str) -> None:
    """Its link's address is made of its own card's, not of the template's."""
    look = "cat /sys/class/net/eth0/address; cat /proc/net/if_inet6; echo ."
    words = ("--rm", "--vm", alpine_image, "sh", "-c", f"{look}; sleep 2; {look}")
    first, second = twofold("run", *words, check=True).stdout.decode().split(".\n")[:2]
    assert "eth0" not in first.split("\n", 1)[1]
    mac, links = second.split("\n", 1)
    assert mac.replace(":", "")[6:] in links


@pytest.mark.shared
def test_a_clock_is_as_fast_as_the_hosts(twofold_root: str, clone: Path, alpine_image: str) -> None:
    """The guest's kernel, left alone on a busy host, takes its counter for up to ten times slower
    than it is; its clock then runs that much too fast."""
    script = "while read -r _; do read -r up _ </proc/uptime; echo $up; done"
    run = ("run", "-i", "--rm", "--vm", "--network", "none", alpine_image, "sh", "-c", script)
    with subprocess.Popen(
        [clone / ".venv/bin/twofold", *run],
        env={**os.environ, "TWOFOLD_ROOT": twofold_root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:

        def reading() -> tuple[float, float, float]:
            """(before, the guest's, after), in seconds."""
            assert child.stdin is not None
            assert child.stdout is not None
            before = time.monotonic()
            child.stdin.write(b"\n")
            child.stdin.flush()
            up = float(child.stdout.readline())
            return before, up, time.monotonic()

        reading()  # it has begun
        before, up, after = reading()
        time.sleep(1)
        later_before, later_up, later_after = reading()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30) == 0
    passed = later_up - up
    assert later_before - after - 0.05 <= passed <= later_after - before + 0.05


@pytest.mark.shared
def test_the_template_is_made_once_for_all_who_wait(twofold: Runner, alpine_image: str) -> None:
    run = (*ODD, alpine_image, "echo", "here")
    before = {one["key"] for one in templates(twofold)}
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: twofold(*run), range(3)))
    assert [item.stdout for item in done] == [b"here\n"] * 3, done
    new = [one for one in templates(twofold) if one["key"] not in before]
    assert len(new) == 1
    assert new[0]["shape"]["memory_bytes"] == 161 << 20


@pytest.mark.shared
def test_a_fork_says_so_and_cold_boots(twofold: Runner, alpine_image: str) -> None:
    run = ("run", "-d", "--vm", "--network", "none")
    for flags, forked in ((["--name", "forked"], True), (["--name", "booted", "--cold"], False)):
        name = flags[1]
        twofold(*run, *flags, alpine_image, "sleep", "1000", check=True)
        try:
            facts = json.loads(twofold("show", name, "--json", check=True).stdout)
            assert bool(facts["isolation_facts"]["template"]) is forked
            uptime = twofold("exec", name, "cat", "/proc/uptime", check=True).stdout
            assert float(uptime.split()[0]) > 0
        finally:
            twofold("rm", "-f", name, check=True)


@pytest.mark.shared
def test_what_a_fork_wrote_is_there_at_its_next_start(twofold: Runner, alpine_image: str) -> None:
    twofold("create", "--vm", "--network", "none", "--name", "writer", alpine_image, "sh", "-c",
            "cat /kept 2>/dev/null; date > /kept; sync", check=True)  # fmt: skip
    try:
        for expected in (0, 1):
            twofold("start", "writer", check=True)
            deadline = time.monotonic() + 60
            while b'"stopped"' not in twofold("show", "writer", "--json", check=True).stdout:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert len(twofold("logs", "writer", check=True).stdout.splitlines()) == expected
    finally:
        twofold("rm", "-f", "writer", check=True)


@pytest.mark.slow
@pytest.mark.shared
def test_a_damaged_template_is_made_again(
    twofold: Runner, twofold_root: str, alpine_image: str
) -> None:
    run = (*ODD, alpine_image, "echo", "here")
    twofold(*run, check=True)
    key = str(templates(twofold)[0]["key"])
    memory = Path(twofold_root, "templates", key, "memory")
    with open(memory, "r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    twofold("template", "list", check=True)
    # Its memory is read again by the next daemon.
    pid = json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"]
    subprocess.run(["kill", str(pid)], check=True)
    time.sleep(1)
    done = twofold(*run)
    assert done.stdout == b"here\n"
    assert b"damaged" in done.stderr
    assert twofold(*run, check=True).stderr.count(b"damaged") == 0


@pytest.mark.shared
def test_removing_a_template_leaves_its_forks_alone(twofold: Runner, alpine_image: str) -> None:
    run = ("run", "-d", *ODD[2:], "--name", "orphan", alpine_image, "sleep", "1000")
    twofold(*run, check=True)
    try:
        key = templates(twofold)[0]["key"]
        twofold("template", "rm", key[:10], check=True)
        assert key not in {one["key"] for one in templates(twofold)}
        assert twofold("exec", "orphan", "md5sum", "/bin/busybox", check=True).stdout
    finally:
        twofold("rm", "-f", "orphan", check=True)
