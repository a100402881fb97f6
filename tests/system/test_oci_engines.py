"""podman 4.3 and docker 20.10 with ``twofold-oci`` as their runtime, through their own commands."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import engines
import oci_lab
import pytest
from engines import IMAGE, Engine

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
NAME = "box"
NETAVARK = "/usr/lib/podman/netavark"


@pytest.fixture(scope="module", params=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    runtime = oci_lab.find_runtime()
    program = "podman" if request.param == "podman" else "/usr/sbin/dockerd"
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed (scripts/setup --tests)")
    with getattr(engines, request.param)(runtime) as made:
        yield made


@pytest.fixture
def run(engine: Engine) -> Iterator[Engine]:
    """The engine; its containers are gone after the test."""
    yield engine
    at_once = ["--time", "0"] if engine.prefix[0] == "podman" else []
    engine("rm", "--force", *at_once, NAME, check=False)


def once(engine: Engine, *words: str, check: bool = True) -> str:
    done = engine("run", "--rm", "--network", "none", *words, check=check)
    return done.stdout.decode().strip()


def background(engine: Engine, *words: str, script: str = "exec sleep 600") -> None:
    engine(
        "run", "--detach", "--name", NAME, "--network", "none", *words, IMAGE, "sh", "-c", script
    )


@pytest.mark.parametrize("code", [0, 7, 143])
def test_run_and_its_exit_code(run: Engine, code: int) -> None:
    words = (IMAGE, "sh", "-c", f"echo hi; exit {code}")
    done = run("run", "--rm", "--network", "none", *words, check=False)
    assert done.returncode == code
    assert done.stdout == b"hi\n"


def test_it_is_our_runtime(run: Engine) -> None:
    background(run)
    field = "{{.OCIRuntime}}" if run.prefix[0] == "podman" else "{{.HostConfig.Runtime}}"
    assert "twofold" in run.says("inspect", "--format", field, NAME)


def test_a_program_that_is_not_there(run: Engine) -> None:
    done = run("run", "--rm", "--network", "none", IMAGE, "/not/there", check=False)
    assert done.returncode == 127, done.stderr
    done = run("run", "--rm", "--network", "none", IMAGE, "/etc", check=False)
    assert done.returncode == 126, done.stderr


def test_standard_input(run: Engine) -> None:
    done = run("run", "--rm", "-i", "--network", "none", IMAGE, "wc", "-c", stdin=b"x" * 70000)
    assert done.stdout.strip() == b"70000"


def test_a_terminal(run: Engine) -> None:
    background(run, "--tty", script="tty; stty size; exec sleep 600")
    run.until("/dev/pts/0", "logs", NAME)


def test_exec(run: Engine) -> None:
    background(run)
    assert run.says("exec", NAME, "cat", "/proc/1/comm") in ("sleep", "sh")
    done = run(
        "exec",
        "--env",
        "A=b",
        "--workdir",
        "/tmp",
        NAME,
        "sh",
        "-c",
        "echo $A; pwd; exit 5",
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, b"b\n/tmp\n")
    assert run.says("exec", "--user", "1000", NAME, "id", "-u") == "1000"


def test_logs(run: Engine) -> None:
    background(run, script="echo one; echo two >&2; exec sleep 600")
    run.until("one", "logs", NAME)


def test_stop_and_start_again(run: Engine) -> None:
    background(run, script="trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    run.until("up", "logs", NAME)
    run("stop", "--time", "20", NAME)
    assert run.says("inspect", "--format", "{{.State.ExitCode}}", NAME) == "3"
    run("start", NAME)
    assert run.says("inspect", "--format", "{{.State.Running}}", NAME) == "true"
    run("restart", "--time", "1", NAME)
    assert run.says("inspect", "--format", "{{.State.Running}}", NAME) == "true"


def test_kill(run: Engine) -> None:
    background(run)
    run("kill", "--signal", "KILL", NAME)
    run.until("137", "inspect", "--format", "{{.State.ExitCode}}", NAME)


def test_pause_and_unpause(run: Engine) -> None:
    background(run)
    run("pause", NAME)
    assert run.says("inspect", "--format", "{{.State.Status}}", NAME) == "paused"
    run("unpause", NAME)
    assert run.says("exec", NAME, "echo", "on") == "on"


def test_update(run: Engine) -> None:
    if "podman" in run.prefix[0]:
        words = ["--cpus", "0.5"]
    else:
        words = ["--memory", "64m", "--memory-swap", "64m", "--pids-limit", "50", "--cpus", "0.5"]
    background(run)
    run("update", *words, NAME)
    assert run.says("exec", NAME, "echo", "on") == "on"


def test_limits_are_in_force(run: Engine) -> None:
    script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null"
    assert (
        once(run, "--pids-limit", "33", "--memory", "64m", IMAGE, "sh", "-c", f"{script}; true")
        == "33"
    )


def test_health(run: Engine) -> None:
    if "podman" in run.prefix[0]:  # which leaves the timer to systemd
        background(run, "--health-cmd", "true", "--health-interval", "disable")
        run("healthcheck", "run", NAME)
    else:
        background(run, "--health-cmd", "true", "--health-interval", "1s")
        run.until("healthy", "inspect", "--format", "{{.State.Health.Status}}", NAME)


def test_volumes(run: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    script = "cat /v/file; touch /v/new; touch /r/no 2>/dev/null || echo read-only"
    said = once(
        *(run, "--volume", f"{tmp_path}:/v", "--volume", f"{tmp_path}:/r:ro"),
        *(IMAGE, "sh", "-c", script),
    )
    assert said == "contentread-only"
    assert (tmp_path / "new").exists()


def test_user_read_only_and_capabilities(run: Engine) -> None:
    script = "id -u; touch /x 2>/dev/null || echo read-only; grep CapEff /proc/self/status"
    said = once(run, "--user", "user", "--read-only", IMAGE, "sh", "-c", script).split()
    assert said[:2] == ["1000", "read-only"]
    assert int(said[3], 16) == 0
    caps = ("--cap-drop", "all", "--cap-add", "CHOWN")
    assert once(run, *caps, IMAGE, "grep", "CapEff", "/proc/self/status").split()[1].endswith("1")


def test_init_tmpfs_and_hostname(run: Engine) -> None:
    script = "mount | grep -c 'tmpfs on /scratch'; hostname"
    said = once(
        *(run, "--tmpfs", "/scratch", "--hostname", "mine", IMAGE, "sh", "-c", script),
    )
    assert said.split() == ["1", "mine"]


def test_filters_of_the_engine_are_loaded(run: Engine) -> None:
    assert once(run, IMAGE, "grep", "Seccomp:", "/proc/self/status").split()[1] == "2"


def test_limits_above_what_this_host_allows(run: Engine) -> None:
    """Where the runtime lacks CAP_SYS_RESOURCE a larger wish is clamped and not an error."""
    said = once(run, "--ulimit", "nofile=2000000:2000000", IMAGE, "sh", "-c", "ulimit -n")
    assert int(said) > 100


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dockerd"), reason="docker is not installed")
def test_a_port_that_docker_publishes() -> None:
    """With docker's own bridge and rules, in a network of the test's own."""
    page = "mkdir -p /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"
    with (
        engines.own_network() as before,
        engines.docker(oci_lab.find_runtime(), before=before) as engine,
    ):
        engine("run", "--detach", "--name", NAME, "--publish", "18080:80", IMAGE, "sh", "-c", page)
        fetch = [*before, oci_lab.BUSYBOX, "wget", "-qO-", "http://127.0.0.1:18080/"]
        deadline = time.monotonic() + 20
        while (done := subprocess.run(fetch, capture_output=True, check=False)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.1)  # httpd does not say when it listens
        assert done.stdout == b"hello\n"


@pytest.mark.skipif(not Path(NETAVARK).exists(), reason=f"{NETAVARK} is not installed")
def test_a_published_port() -> None:
    """In a network of the test's own, where podman's bridge and rules disturb nobody."""
    page = "mkdir -p /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"
    with (
        engines.own_network() as before,
        engines.podman(oci_lab.find_runtime(), before=before) as engine,
    ):
        engine("run", "--detach", "--name", NAME, "--publish", "18080:80", IMAGE, "sh", "-c", page)
        gateway = engine.says("inspect", "--format", "{{.NetworkSettings.Gateway}}", NAME)
        fetch = [*before, oci_lab.BUSYBOX, "wget", "-qO-", f"http://{gateway}:18080/"]
        deadline = time.monotonic() + 20
        while (done := subprocess.run(fetch, capture_output=True, check=False)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.1)  # httpd does not say when it listens
        assert done.stdout == b"hello\n"
        engine("rm", "--force", "--time", "0", NAME)
