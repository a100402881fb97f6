"""containerd's own shim (io.containerd.runc.v2) with ``twofold-oci`` as its runc."""

import json
import shutil
from collections.abc import Iterator

import engines
import oci_lab
import pytest
from engines import Engine

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("ctr"), reason="containerd is not installed"),
]
IMAGE = f"docker.io/local/{engines.IMAGE}:latest"


@pytest.fixture(scope="module")
def ctr() -> Iterator[Engine]:
    with engines.containerd() as made:
        yield made


def run(ctr: Engine, *words: str, check: bool = True) -> tuple[int, str]:
    runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", oci_lab.find_runtime())
    done = ctr("run", *runtime, "--snapshotter", "native", *words, check=check)
    return done.returncode, done.stdout.decode().strip()


@pytest.mark.parametrize("code", [0, 7])
def test_run_and_its_exit_code(ctr: Engine, code: int) -> None:
    script = f"echo hi; exit {code}"
    words = ("--rm", IMAGE, f"once{code}", "sh", "-c", script)
    assert run(ctr, *words, check=False) == (code, "hi")


def test_the_life_of_a_task(ctr: Engine) -> None:
    run(ctr, "--detach", "--memory-limit", str(64 << 20), IMAGE, "life", "sleep", "600")
    listed = ctr.says("task", "ls")
    assert "life" in listed
    assert "RUNNING" in listed
    said = ctr.says("task", "exec", "--exec-id", "one", "life", "cat", "/proc/1/comm")
    assert said == "sleep"
    failed = ctr("task", "exec", "--exec-id", "two", "life", "sh", "-c", "exit 5", check=False)
    assert failed.returncode == 5
    absent = ctr("task", "exec", "--exec-id", "three", "life", "/not/there", check=False)
    assert absent.returncode != 0
    assert b"/not/there" in absent.stderr
    ctr("task", "pause", "life")
    assert "PAUSED" in ctr.says("task", "ls")
    ctr("task", "resume", "life")
    processes = ctr.says("task", "ps", "life").splitlines()
    assert len(processes) == 2, processes
    metrics = json.loads(ctr.says("task", "metrics", "--format", "json", "life"))
    assert "memory" in json.dumps(metrics).lower()
    ctr("task", "kill", "--signal", "SIGKILL", "life")
    ctr.until("STOPPED", "task", "ls")
    done = ctr("task", "rm", "life")
    assert b"exit code 137" in done.stderr
    ctr("container", "rm", "life")
    assert "life" not in ctr.says("container", "ls")


def test_a_bundle_that_cannot_be_run(ctr: Engine) -> None:
    code, _ = run(ctr, "--rm", IMAGE, "bad", "/not/there", check=False)
    assert code != 0
    assert "bad" not in ctr.says("task", "ls")
