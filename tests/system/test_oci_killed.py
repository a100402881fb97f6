"""Yardstick R2: the runtime is killed anywhere, at any system call; ``delete --force`` cleans up.

``TWOFOLD_KILL_POINTS=1000`` takes every invocation and not a selection.
"""

import signal
import time
from pathlib import Path

import kill_points
import pytest
from oci_lab import CGROUP, Container, Lab, user_namespace
from oci_spec import beyond_runc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    beyond_runc("leaves cgroups behind, at four points of openat alone"),
]

VERBS = ("create", "start", "exec", "delete")


def words(container: Container, verb: str) -> tuple[str, ...]:
    return {
        "create": ("create", "--bundle", str(container.bundle), container.name),
        "start": ("start", container.name),
        "exec": ("exec", container.name, "/bin/true"),
        "delete": ("delete", "--force", container.name),
    }[verb]


def bring_to(container: Container, verb: str) -> None:
    """The state in which ``verb`` is what comes next."""
    if verb != "create":
        container.create()
    if verb in ("exec", "delete"):
        container.start()


@pytest.mark.parametrize("kind", kill_points.CALLS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("userns", [False, True], ids=["plain", "userns"])
def test_killed_at_every_call(oci: Lab, tmp_path: Path, verb: str, kind: str, userns: bool) -> None:
    calls = kill_points.CALLS[kind]
    changes = {"mounts+": [CGROUP], "linux.resources.pids.limit": 50}
    container = oci.container({**changes, **(user_namespace() if userns else {})})
    if userns:
        oci.give(container.bundle)
    before = oci.inventory()
    bring_to(container, verb)
    record = tmp_path / "strace"
    streams = container.bundle
    oci.call(*words(container, verb), prefix=kill_points.tracing(calls, record), streams=streams)
    container.delete("--force")
    oci.assert_nothing_new(before)
    time.sleep(0.1)  # strace is a process of its own and writes its last lines when it pleases
    found = list(kill_points.points(record.read_text(), calls, str(oci.root)))
    assert found or verb != "create", f"{verb} makes none of {calls}"
    killed = 0
    for call, number in found:
        bring_to(container, verb)
        prefix = kill_points.killing(call, number)
        done = oci.call(*words(container, verb), prefix=prefix, streams=streams, check=False)
        killed += done.code == -signal.SIGKILL
        assert "Traceback" not in container.err(), (call, number)
        container.delete("--force")
        try:
            oci.assert_nothing_new(before)
        except AssertionError as error:
            raise AssertionError(f"killed at {call} number {number}: {error}") from error
    print(f"{len(found)} points, {killed} killed the runtime itself")
    assert killed or kind != "files", "the runtime itself was never killed"
    with container.life():
        container.exec("true")
