"""Many lives, many at once, and a runtime that is killed at every step: nothing stays."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from oci_lab import Container, Lab, user_namespace
from oci_spec import beyond_runc

from twofold.oci import fault

KILLED = -signal.SIGKILL


# ------------------------------------------------------------------- killed at every named step


def of(*verbs: str) -> list[str]:
    return [step for step in fault.STEPS if step.split("-")[0] in verbs]


def killed_at(oci: Lab, step: str, *words: str, streams: Path | None = None) -> None:
    """The verb comes to the step, which kills it: proof that the step is on its way."""
    done = oci.call(*words, env={"TWOFOLD_OCI_FAULT": step}, streams=streams, check=False)
    assert done.code == KILLED, f"{step} was never reached: {done}"


def gone(oci: Lab, container: Container, before: frozenset[str], *, again: bool = False) -> None:
    """One ``delete --force`` takes all away, and the id is free ``again``."""
    container.delete("--force")
    oci.assert_nothing_new(before)
    if again:
        with container.life():
            container.exec("true")


@beyond_runc("has no named steps")
@pytest.mark.parametrize("step", of("create"))
@pytest.mark.parametrize("userns", [False, True], ids=["plain", "userns"])
def test_create_killed(oci: Lab, step: str, userns: bool) -> None:
    if step == "create-maps" and not userns:
        pytest.skip("without a user namespace there are no ids to map")
    before = oci.inventory()
    container = oci.container(user_namespace() if userns else {})
    if userns:
        oci.give(container.bundle)
    words = ("create", "--bundle", str(container.bundle), container.name)
    killed_at(oci, step, *words, streams=container.bundle)
    gone(oci, container, before, again=step == "create-created")


@beyond_runc("has no named steps")
@pytest.mark.parametrize("step", of("start"))
def test_start_killed(oci: Lab, step: str) -> None:
    before = oci.inventory()
    container = oci.container()
    container.create()
    killed_at(oci, step, "start", container.name)
    assert container.state()["status"] in ("created", "running")
    gone(oci, container, before)


@beyond_runc("has no named steps")
@pytest.mark.parametrize("step", of("exec"))
def test_exec_killed(oci: Lab, step: str) -> None:
    before = oci.inventory()
    container = oci.container()
    with container.life():
        killed_at(oci, step, "exec", container.name, "/bin/sleep", "60")
        assert container.state()["status"] == "running"
        container.exec("true")
    oci.assert_nothing_new(before)


@beyond_runc("has no named steps")
@pytest.mark.parametrize("step", of("delete"))
def test_delete_killed(oci: Lab, step: str) -> None:
    before = oci.inventory()
    container = oci.container()
    container.create()
    container.start()
    killed_at(oci, step, "delete", "--force", container.name)
    gone(oci, container, before, again=True)


@beyond_runc("has no named steps")
def test_every_step_belongs_to_a_test() -> None:
    assert of("create", "start", "exec", "delete") == list(fault.STEPS)


@pytest.mark.parametrize("delay_s", [0.005, 0.02, 0.04, 0.06, 0.09, 0.14])
@beyond_runc("leaves cgroups behind")
def test_killed_at_any_moment(oci: Lab, delay_s: float) -> None:
    """Between the named steps: by the clock."""
    before = oci.inventory()
    container = oci.container()
    process = subprocess.Popen(
        oci.command("create", "--bundle", str(container.bundle), container.name),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TWOFOLD_OCI_LAB": oci.token},
    )
    time.sleep(delay_s)  # the point of the test
    process.kill()
    process.wait()
    gone(oci, container, before)


# ------------------------------------------------------------------- one after the other


def cycle(oci: Lab, container: Container) -> None:
    container.create()
    container.start()
    container.delete("--force")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def run_cycles(oci: Lab, count: int) -> None:
    before, open_before = oci.inventory(), descriptors()
    container = oci.container(script="exit 0")
    for _ in range(count):
        cycle(oci, container)
    oci.assert_nothing_new(before)
    assert descriptors() <= open_before + 2
    dmesg_free = oci.output("echo fine")
    assert dmesg_free == "fine"


def test_twenty_lives(oci: Lab) -> None:
    """A leak shows in the inventory after one; two thousand are for what is smaller than that."""
    run_cycles(oci, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_lives(oci: Lab) -> None:
    memory = _kernel_memory_kib()
    run_cycles(oci, 2000)
    assert _kernel_memory_kib() - memory < 200 << 10


def _kernel_memory_kib() -> int:
    """Memory that only the kernel can have kept: slabs that cannot be reclaimed, and stacks."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ("SUnreclaim", "KernelStack", "PageTables"))


# ------------------------------------------------------------------- all at once


def at_once(oci: Lab, count: int, *, workers: int) -> None:
    """All exist at the same moment; each is asked something; all are deleted at once."""
    before = oci.inventory()
    containers = [oci.container(script=f"echo {n}; exec sleep 600") for n in range(count)]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        list(pool.map(lambda container: container.run(), containers))
        listed = oci.call("list", "--quiet").out.split()
        assert sorted(listed) == sorted(container.name for container in containers)
        for number, container in enumerate(containers):
            container.await_output(f"{number}\n")
        list(pool.map(lambda container: container.delete("--force"), containers))
    oci.assert_nothing_new(before)
    oci.containers.clear()


@pytest.mark.timeout(600)
def test_two_hundred_at_once(oci: Lab) -> None:
    at_once(oci, 200, workers=200)


def test_one_of_many_wins_an_id(oci: Lab) -> None:
    """Yardstick R13."""
    before = oci.inventory()
    container = oci.container()
    codes: list[int] = []
    barrier = threading.Barrier(12)

    def create() -> None:
        bundle = oci.home / f"contender{threading.get_ident()}"
        bundle.mkdir()
        barrier.wait()
        words = ("create", "--bundle", str(container.bundle), container.name)
        codes.append(oci.call(*words, streams=bundle, check=False).code)

    threads = [threading.Thread(target=create) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(0) == 1, codes
    container.start()
    container.exec("true")
    container.delete("--force")
    oci.assert_nothing_new(before)


def test_delete_during_everything(oci: Lab) -> None:
    """``delete --force`` at once with create, start and exec: in the end nothing is there."""
    before = oci.inventory()
    for _ in range(5):
        container = oci.container()
        container.create()
        with ThreadPoolExecutor(max_workers=4) as pool:
            futures = [
                pool.submit(container.start, check=False),
                pool.submit(container.exec, "true", check=False),
                pool.submit(container.delete, "--force", check=False),
                pool.submit(container.kill, "KILL", check=False),
            ]
            for future in futures:
                assert "Traceback" not in future.result().err
        container.delete("--force")
    oci.assert_nothing_new(before)
