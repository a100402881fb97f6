"""``fork``: a machine is copied with its memory and goes on as somebody else."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable

import pytest

from twofold.client.transport import Client
from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
HARDWARE = {"virtio": ["--vm"], "emulated": ["--vm", "--hardware", "emulated"]}
# Holds a secret in memory and on disk, counts, and says who it is now.
WORKER = """
secret=$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' ')
echo $secret > /kept; sync
i=0
while :; do
  i=$((i+1)); echo "$i $secret $(cat /kept) $(hostname) $(cat /sys/class/net/eth0/address)"
  sleep 0.2
done
"""
# Draws without a pause, and says how long it has run by then, which differs from copy to copy.
DRAWER = """
while :; do
  read -r uuid </proc/sys/kernel/random/uuid; read -r ran </proc/self/schedstat; echo $uuid $ran
done </dev/null >/dev/shm/drawn 2>&1
"""


def drawn_after_the_copy_by_both(one: str, other: str) -> list[str]:
    """What two copies of a drawer drew alike when they no longer were one. Its last line before
    the copy may have been half done."""
    first, second = (
        dict(line.split(" ", 1) for line in text.splitlines() if line.count(" ") == 3)
        for text in (one, other)
    )
    assert min(len(first), len(second)) > 50, "it draws"
    assert first.keys() & second.keys(), "it drew before the copy"
    assert first.keys() ^ second.keys(), "it drew after the copy"
    return [uuid for uuid in first.keys() & second.keys() if first[uuid] != second[uuid]][1:]


def last_line(twofold: Runner, name: str, *, beyond: int = 0) -> list[str]:
    """The newest line of a worker that counts further than ``beyond``."""
    deadline = time.monotonic() + 60
    while True:
        lines = twofold("logs", name, check=True).stdout.decode().splitlines()
        if lines and int(lines[-1].split()[0]) > beyond:
            return lines[-1].split()
        assert time.monotonic() < deadline, f"{name} does not count: {lines[-1:]}"
        time.sleep(0.2)


def standstill_s(twofold_root: str) -> float:
    """For how long the parent of the last fork stood still, as the operation says."""
    operations = Client(Paths(twofold_root)).call("GET", "/v1/operations")
    last = [one for one in operations if one["kind"] == "instance.fork"][-1]
    (words,) = (step["message"] for step in last["steps"] if step["title"].startswith("Copying"))
    found = re.search(r"stood still for (\d+) ms", words)
    assert found, words
    return int(found[1]) / 1000


@pytest.mark.shared
@pytest.mark.parametrize("hardware", list(HARDWARE))
def test_forks_go_on_from_that_moment(
    twofold: Runner,
    twofold_root: str,
    alpine_image: str,
    no_leaks: Callable[[], None],
    hardware: str,
) -> None:
    run = ("run", "-d", *HARDWARE[hardware], "--name", "parent", alpine_image)
    twofold(*run, "sh", "-c", WORKER, check=True)
    try:
        before = last_line(twofold, "parent", beyond=3)
        twofold("exec", "parent", "setsid", "sh", "-c", f"({DRAWER}) &", check=True)
        forks = twofold("fork", "parent", "--count", "2", "--name", "child-{n}", check=True)
        assert forks.stdout.split() == [b"child-1", b"child-2"]
        assert standstill_s(twofold_root) < 0.9, "well under a second, beside other work"
        drawn = [
            twofold(
                "exec", name, "sh", "-c", "pkill -f 'schedsta[t]'; cat /dev/shm/drawn", check=True
            )
            for name in ("child-1", "child-2", "parent")
        ]
        assert not drawn_after_the_copy_by_both(*(done.stdout.decode() for done in drawn[:2]))
        workers = {"parent": before, "child-1": [], "child-2": []}
        for name in workers:
            # The line a fork was printing when it was copied is still its parent's.
            first = int(last_line(twofold, name, beyond=int(before[0]))[0])
            workers[name] = last_line(twofold, name, beyond=first + 1)
        assert {words[1] for words in workers.values()} == {before[1]}, "the memory came along"
        assert {words[2] for words in workers.values()} == {before[1]}, "the disk came along"
        assert [words[3] for words in workers.values()] == list(workers)
        assert len({words[4] for words in workers.values()}) == 3
        uuids = {
            twofold("exec", name, "cat", "/proc/sys/kernel/random/uuid", check=True).stdout
            for name in workers
        }
        assert len(uuids) == 3
        addresses = {}
        for name in workers:
            shown = json.loads(twofold("show", name, "--json", check=True).stdout)
            said = twofold("exec", name, "ip", "-4", "-o", "addr", "show", "eth0", check=True)
            assert f"inet {shown['address']}/".encode() in said.stdout
            addresses[name] = shown["address"]
        ping = ("exec", "child-1", "ping", "-c1", "-W10", addresses["child-2"])
        assert b"1 packets received" in twofold(*ping, check=True).stdout
        # What one writes now is its own.
        twofold("exec", "child-1", "sh", "-c", "echo mine > /kept", check=True)
        assert b"mine" not in twofold("exec", "child-2", "cat", "/kept", check=True).stdout
        assert b"mine" not in twofold("exec", "parent", "cat", "/kept", check=True).stdout
    finally:
        twofold("rm", "-f", "parent", "child-1", "child-2")


@pytest.mark.shared
def test_a_fork_of_a_fork_survives_its_parents(twofold: Runner, alpine_image: str) -> None:
    run = ("run", "-d", "--vm", "--network", "none", "--name", "first", alpine_image, "sh", "-c")
    twofold(*run, WORKER.replace("$(cat /sys/class/net/eth0/address)", "-"), check=True)
    try:
        secret = last_line(twofold, "first", beyond=1)[1]
        twofold("fork", "first", "--name", "second", check=True)
        twofold("rm", "-f", "first", check=True)
        twofold("fork", "second", "--name", "third", check=True)
        twofold("rm", "-f", "second", check=True)
        # The line it was printing when it was copied is still its parent's.
        first = int(last_line(twofold, "third")[0])
        words = last_line(twofold, "third", beyond=first + 1)
        assert words[1:4] == [secret, secret, "third"]
        # Its payload is the one that was copied, so its exit status is there as well.
        twofold("exec", "third", "pkill", "-9", "sleep")
        assert twofold("kill", "-s", "TERM", "third").returncode == 0
    finally:
        twofold("rm", "-f", "first", "second", "third")


@pytest.mark.shared
def test_the_files_of_a_container_are_copied_and_owned_anew(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None]
) -> None:
    twofold(
        *("run", "-d", "--network", "none", "--name", "parent", alpine_image, "sh", "-c"),
        "echo started >> /starts; rm /etc/motd; chown 1000:100 /home; sleep 1000",
        check=True,
    )
    try:
        time.sleep(1)
        twofold("fork", "parent", "--name", "child", check=True)
        time.sleep(1)
        show = ("sh", "-c", "cat /starts; ls /etc/motd; stat -c '%u:%g' /home /starts")
        done = twofold("exec", "child", *show)
        assert done.stdout.split() == [b"started", b"started", b"1000:100", b"0:0"]
        assert b"No such file" in done.stderr
        shown = [json.loads(twofold("show", name, "--json").stdout) for name in ("parent", "child")]
        ranges = [one["isolation_facts"]["id_range"] for one in shown]
        assert ranges[0] != ranges[1]
        twofold("exec", "child", "sh", "-c", "echo changed > /starts", check=True)
        assert twofold("exec", "parent", "cat", "/starts").stdout == b"started\n"
    finally:
        twofold("rm", "-f", "parent", "child")


@pytest.mark.shared
def test_what_cannot_be_forked_says_why(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None], tmp_path: "os.PathLike[str]"
) -> None:
    twofold("create", "--name", "idle", alpine_image, check=True)
    try:
        for words, reason in (
            (("idle",), b"only what runs can be forked"),
            (("nobody",), b"nobody"),
            (("idle", "--count", "0"), b"positive"),
            (("idle", "--count", "101"), b"101"),
        ):
            done = twofold("fork", *words)
            assert done.returncode in (2, 125), done
            assert reason in done.stderr
        names = [one["name"] for one in json.loads(twofold("list", "-a", "--json").stdout)]
        assert not [name for name in names if name.startswith("idle-")]
    finally:
        twofold("rm", "-f", "idle")
