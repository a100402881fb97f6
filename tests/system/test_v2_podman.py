"""podman under systemd: groups as scopes that systemd knows of, health checks by systemd's timers.

In a Debian machine of our own with pure control groups v2, where nothing but podman's packages and
configuration was added: what a user has who follows ``docs/reference/oci.md``. A call of
podman takes seconds there. What podman does elsewhere is in ``test_oci_engines.py``.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import engines
import host_lab
import pytest
from host_lab import Host, Runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
IMAGE = "test-podman-host"
PACKAGES = (*host_lab.PACKAGES, "podman", "netavark")
NAME = "box"
# Whole copies instead of overlays, which may not lie on the machine's root: that is one already.
_INSTALL = """
mount -t tmpfs -o mode=700 tmpfs /var/lib/containers
cat >/etc/containers/storage.conf <<END
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
END
cat >/etc/containers/containers.conf <<END
[engine]
runtime = "twofold-oci"
[engine.runtimes]
twofold-oci = ["$1/.venv/bin/twofold-oci"]
END
podman import --quiet - "$2"
"""


@pytest.fixture(scope="module")
def host(
    twofold: Runner,
    twofold_root: str,
    alpine_image: str,
    clone: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Host]:
    image = host_lab.build_image(twofold, IMAGE, PACKAGES)
    scratch = tmp_path_factory.mktemp("podman")
    share = scratch / "share"
    share.mkdir()
    host_lab.pack_checkout(clone, share / "checkout.erofs")
    store = Path(twofold_root) / "images"
    host_lab.make_state(store, [alpine_image], share / "state.ext4", scratch)
    try:
        made = host_lab.boot(twofold, "host-podman", share, clone, image=image)
        script = ("bash", "-c", _INSTALL, "bash", str(clone), engines.IMAGE)
        done = made.run(*script, stdin=engines.image_tarball())
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        twofold("rm", "-f", "host-podman")


@pytest.fixture
def podman(host: Host) -> Iterator[Host]:
    """The machine; the container is gone after the test, and systemd knows nothing of it."""
    yield host
    host.sh("podman rm --force --ignore --time 0 $1", NAME)
    left = "systemctl list-units --all --plain --no-legend '*.timer' '*.scope'; ls -R $1"
    said = host.sh(left, "/sys/fs/cgroup/machine.slice")
    assert not [line for line in said.splitlines() if "libpod" in line or "podman health" in line]


def start(host: Host, *options: str, script: str = "exec sleep 600") -> str:
    """The container's full id."""
    words = ("podman", "run", "--detach", "--name", NAME, "--network", "none", *options)
    done = host.run(*words, engines.IMAGE, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def inspect(host: Host, what: str) -> str:
    return host.sh('podman inspect --format "$1" $2', "{{" + what + "}}", NAME).strip()


def await_health(host: Host, wanted: str) -> None:
    deadline = time.monotonic() + 240
    while (now := inspect(host, ".State.Health.Status")) != wanted:
        assert time.monotonic() < deadline, (now, host.sh("journalctl --no-pager -n 30"))
        time.sleep(1)  # podman tells of health by no event in this version


def limits(group: str, host: Host) -> dict[str, str]:
    """As the kernel has them, and as systemd believes them to be."""
    unit = Path(group).name
    kernel = (
        "cd /sys/fs/cgroup/$1; for f in memory.max pids.max cpu.max; do echo $f=$(cat $f); done"
    )
    systemd = "systemctl show -p MemoryMax -p TasksMax -p CPUQuotaPerSecUSec $2"
    said = host.sh(f"{kernel}; {systemd}", group, unit)
    return dict(line.split("=", 1) for line in said.splitlines())


def test_the_machine_is_what_it_should_be(host: Host) -> None:
    said = host.sh("podman info --format json")
    info = json.loads(said)["host"]
    assert (info["cgroupManager"], info["cgroupVersion"]) == ("systemd", "v2")
    assert info["ociRuntime"]["name"] == "twofold-oci"


def test_health_by_systemds_timer(podman: Host) -> None:
    """Healthy, unhealthy and healthy again, and nobody here calls ``podman healthcheck run``."""
    check = ("--health-cmd", "test -e /tmp/fine", "--health-interval", "2s")
    container = start(podman, *check, "--health-retries", "2", script="exec sleep 900")
    assert inspect(podman, ".State.Health.Status") == "starting"
    assert podman.sh("systemctl is-active $1.timer", container) == "active\n"
    podman.sh("podman exec $1 touch /tmp/fine", NAME)
    await_health(podman, "healthy")
    podman.sh("podman exec $1 rm /tmp/fine", NAME)
    await_health(podman, "unhealthy")
    podman.sh("podman exec $1 touch /tmp/fine", NAME)
    await_health(podman, "healthy")
    assert "healthcheck run" in podman.sh("journalctl --no-pager -u $1.service", container)


def test_a_container_is_a_scope_whose_limits_hold(podman: Host) -> None:
    given = ("--memory", "64m", "--pids-limit", "33", "--cpus", "0.5", "--cap-add", "MKNOD")
    container = start(podman, *given)
    group = inspect(podman, ".State.CgroupPath")
    assert group == f"/machine.slice/libpod-{container}.scope"
    pid = inspect(podman, ".State.Pid")
    assert podman.sh("cat /proc/$1/cgroup", pid).strip() == f"0::{group}"
    wanted = {
        "memory.max": "67108864",
        "pids.max": "33",
        "cpu.max": "50000 100000",
        "MemoryMax": "67108864",
        "TasksMax": "33",
        "CPUQuotaPerSecUSec": "500ms",
    }
    assert limits(group, podman) == wanted
    podman.sh("systemctl daemon-reload")
    assert limits(group, podman) == wanted
    # Nor did systemd take away the filter of devices: loop-control is none of the container's.
    nodes = "cd /; mknod n c 1 3; mknod l c 10 237; head -c1 n && echo null; head -c1 l 2>&1; true"
    said = podman.sh('podman exec $1 sh -c "$2"', NAME, nodes)
    assert said.startswith("null\n")
    assert "not permitted" in said
    # Another process joins the same group, which is the top of what it sees, and is held there.
    assert podman.sh("podman exec $1 cat /proc/self/cgroup", NAME).strip() == "0::/"
    forks = "podman exec $1 sh -c 'for i in $(seq 40); do sleep 9 & done' 2>&1; true"
    assert "Resource temporarily unavailable" in podman.sh(forks, NAME)


def test_update_reaches_the_kernel_and_systemd(podman: Host) -> None:
    start(podman, "--memory", "64m", "--cpus", "0.5")
    group = inspect(podman, ".State.CgroupPath")
    podman.sh("podman update --memory 48m --cpus 0.25 $1; systemctl daemon-reload", NAME)
    found = limits(group, podman)
    assert found["memory.max"] == found["MemoryMax"] == str(48 << 20)
    assert (found["cpu.max"], found["CPUQuotaPerSecUSec"]) == ("25000 100000", "250ms")


def test_pause_stats_and_stop(podman: Host) -> None:
    start(podman, script="trap 'exit 3' TERM; while :; do sleep 0.2; done")
    group = inspect(podman, ".State.CgroupPath")
    podman.sh("podman pause $1", NAME)
    assert "frozen 1" in podman.sh("cat /sys/fs/cgroup/$1/cgroup.events", group)
    podman.sh("podman unpause $1", NAME)
    said = json.loads(podman.sh("podman stats --no-stream --format json $1", NAME))
    assert int(said[0]["pids"]) >= 1
    assert "sleep" in podman.sh("podman top $1", NAME)
    podman.sh("podman stop --time 60 $1", NAME)
    assert inspect(podman, ".State.ExitCode") == "3"
    assert podman.sh("ls -d /sys/fs/cgroup/$1 2>&1; true", group).startswith("ls:")
    podman.sh("podman start $1", NAME)
    assert "active" in podman.sh("systemctl is-active $1", Path(group).name)


def test_out_of_memory_in_a_scope(podman: Host) -> None:
    words = ("podman", "run", "--name", NAME, "--network", "none", "--memory", "24m")
    done = podman.run(*words, "--memory-swap", "24m", engines.IMAGE, "tail", "/dev/zero")
    assert done.returncode == 137, done.stderr
    container = inspect(podman, ".Id")
    # podman's own word for it comes too late for a group that its only process has left.
    said = podman.sh("journalctl --no-pager -k --grep oom-kill:")
    assert "CONSTRAINT_MEMCG" in said
    assert f"task_memcg=/machine.slice/libpod-{container}.scope" in said


def test_systemd_ends_a_container_by_its_scope(podman: Host) -> None:
    """``systemctl stop`` is a way to end it, and podman hears of it."""
    container = start(podman, script="trap 'exit 3' TERM; while :; do sleep 0.2; done")
    podman.sh("systemctl stop libpod-$1.scope", container)
    said = podman.sh("podman wait $1; podman ps --all --format '{{.Status}}'", NAME)
    assert said.splitlines()[0] == "3"
    assert "Exited" in said
