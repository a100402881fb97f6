"""``runtime.md``: the state, the operations, and when each is refused; the command line."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from oci_lab import ABSENT, Lab, await_exit
from oci_spec import beyond_runc, proves, refutes

STATE = ("ociVersion", "id", "status", "pid", "bundle")


# ------------------------------------------------------------------- the life of a container


@proves(*(f"state.{name}" for name in STATE))
@proves("create", "create: the program does not run before start", "start", "kill", "delete")
@refutes("state.status", "state.pid")
def test_a_whole_life(oci: Lab) -> None:
    container = oci.container(script="echo ran > /tmp/ran; echo ready; exec sleep 60")
    ran = container.bundle / "rootfs/tmp/ran"
    container.create()
    state = container.state()
    assert state["status"] == "created"
    assert state["id"] == container.name
    assert state["bundle"] == str(container.bundle)
    assert state["ociVersion"].count(".") == 2
    assert Path(f"/proc/{state['pid']}").exists()
    assert not ran.exists()
    container.start()
    container.await_output()
    assert container.state()["status"] == "running"
    assert container.state()["pid"] == state["pid"]
    assert os.readlink(f"/proc/{state['pid']}/root") != "/" or ran.exists()
    container.kill("KILL")
    container.wait()
    stopped = container.state()
    assert stopped["status"] == "stopped"
    assert not stopped.get("pid")
    container.delete()
    assert oci.call("state", container.name, check=False).code != 0


@refutes("create", "start", "create: the program does not run before start")
def test_start_only_once_and_only_when_created(oci: Lab) -> None:
    container = oci.container()
    with container.life():
        assert container.start(check=False).code != 0
        assert container.state()["status"] == "running"
        container.kill("KILL")
        container.wait()
        assert container.start(check=False).code != 0


@proves("start: not created")
@refutes("start: not created")
def test_start_of_what_is_not_there(oci: Lab) -> None:
    done = oci.call("start", f"{oci.token}-nothing", check=False)
    assert done.code != 0
    assert f"{oci.token}-nothing" in done.err or oci.is_runc
    with oci.container().life():  # which starts
        pass


@proves("start: without process")
@refutes("start: without process")
@beyond_runc("wants process for create")
def test_create_without_process_and_no_start(oci: Lab) -> None:
    container = oci.container({"process": ABSENT})
    done = container.create(check=False)
    if done.code == 0:
        started = container.start(check=False)
        assert started.code != 0
        assert "process" in started.err
        container.delete("--force")
    else:  # allowed as well: a runtime may validate the bundle before
        assert "process" in done.err
    with oci.container().life():
        pass


@proves("create: a later change of config.json has no effect")
@refutes("create: a later change of config.json has no effect")
def test_the_bundle_may_change_after_create(oci: Lab) -> None:
    container = oci.container(script="echo first ready; exec sleep 60")
    container.create()
    config = oci.read(container.bundle)
    config["process"]["args"][-1] = "echo second ready"
    config["hostname"] = "other"
    oci.write(container.bundle, config)
    container.start()
    assert container.await_output().strip() == "first ready"
    assert container.exec("hostname").out.strip() == "box"
    container.delete("--force")
    assert oci.output("echo second") == "second"


@proves("create: an id that exists")
@refutes("create: an id that exists", "delete: the id can be used again")
def test_an_id_is_there_once(oci: Lab) -> None:
    container = oci.container()
    with container.life():
        bundle = oci.bundle(None, script="echo the-payload-ran")
        done = oci.call("run", "--bundle", str(bundle), container.name, check=False)
        assert done.code != 0
        assert "the-payload-ran" not in done.out
        assert container.name in done.err or oci.is_runc
        assert container.state()["status"] == "running"
        container.exec("true")


@proves("delete: the id can be used again")
@refutes("create: an id that exists")
def test_an_id_is_free_after_delete(oci: Lab) -> None:
    container = oci.container()
    for _ in range(3):
        with container.life():
            container.exec("true")


BAD_IDS = ("..", ".", "", "a/b", "-rf", "a b", "x" * 1025, "ü", "a\nb", "../../etc", "a;b", "a\tb")


@proves("create: an id that is not valid")
@refutes("create: an id that is not valid")
@pytest.mark.parametrize("name", BAD_IDS)
def test_ids_that_are_none_are_refused(oci: Lab, name: str) -> None:
    """Yardstick O23; an id becomes a file name and a cgroup name."""
    if oci.is_runc and name in ("-rf", "x" * 1025):
        pytest.skip("runc: fails for another reason")
    before = oci.inventory()
    bundle = oci.bundle(None, script="echo the-payload-ran")
    for verb in ("run", "create"):
        done = oci.call(verb, "--bundle", str(bundle), "--", name, check=False)
        assert done.code != 0
        assert "the-payload-ran" not in done.out
        assert "Traceback" not in done.err
    for verb in ("state", "delete", "start"):
        assert oci.call(verb, "--", name, check=False).code != 0
    oci.assert_nothing_new(before)
    assert oci.run("echo fine", words=("--no-new-keyring",)).out == "fine\n"


@proves("state: unknown container", "kill: stopped", "delete: not stopped")
@refutes("state: unknown container", "kill", "kill: stopped", "delete", "delete: not stopped")
def test_operations_in_the_wrong_state(oci: Lab) -> None:
    nothing = f"{oci.token}-nothing"
    for words in (("state", nothing), ("kill", nothing, "KILL"), ("delete", nothing), ("state",)):
        done = oci.call(*words, check=False)
        assert done.code != 0
        assert done.err.strip()
    assert oci.call("delete", "--force", nothing, check=False).code == 0
    container = oci.container()
    with container.life():
        done = container.delete(check=False)
        assert done.code != 0
        assert container.state()["status"] == "running"
        container.exec("true")
        container.kill("KILL")
        container.wait()
        done = container.kill("TERM", check=False)
        assert done.code != 0
        if not oci.is_runc:
            assert "stopped" in done.err
        assert oci.call("exec", container.name, "true", check=False).code != 0


@proves("kill")
@refutes("kill")
@pytest.mark.parametrize("name", ["USR1", "SIGUSR1", "10", "usr1"])
def test_signals_by_name_and_number(oci: Lab, name: str) -> None:
    script = "trap 'echo got-usr1' USR1; echo ready; while :; do sleep 0.01; done"
    container = oci.container(script=script)
    with container.life():
        container.await_output()
        container.kill(name)
        assert "got-usr1" in container.await_output("got-usr1")
        for wrong in ("SIGWHATEVER", "0x10", "99", "-1", "1e1"):
            assert oci.call("kill", container.name, "--", wrong, check=False).code != 0
        assert container.state()["status"] == "running"


def test_term_is_the_signal_when_none_is_named(oci: Lab) -> None:
    script = "trap 'echo got-term; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    container = oci.container(script=script)
    with container.life():
        container.await_output()
        oci.call("kill", container.name)
        assert "got-term" in container.await_output("got-term")


def test_kill_all_reaches_every_process(oci: Lab) -> None:
    """Also those in a pid namespace that the container shares with the host."""
    namespaces = [{"type": n} for n in ("network", "ipc", "uts", "mount", "cgroup")]
    script = "sleep 61 & sleep 62 & echo ready; exec sleep 60"
    container = oci.container({"linux.namespaces": namespaces}, script=script)
    with container.life():
        container.await_output()
        pids = oci.processes()
        assert len(pids) >= 3
        oci.call("kill", "--all", container.name, "KILL")
        for pid in pids:
            await_exit(pid)


def test_delete_by_force_kills_all_of_a_shared_pid_namespace(oci: Lab) -> None:
    namespaces = [{"type": n} for n in ("network", "ipc", "uts", "mount", "cgroup")]
    container = oci.container(
        {"linux.namespaces": namespaces}, script="sleep 61 & setsid sleep 62 & echo ready; sleep 60"
    )
    container.create()
    container.start()
    container.await_output()
    container.delete("--force")
    oci.assert_nothing_new(frozenset())


def test_a_created_container_can_be_killed_and_deleted(oci: Lab) -> None:
    container = oci.container()
    container.create()
    container.kill("KILL")
    container.wait()
    container.delete()


# ------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_exit_codes_of_run_and_exec(oci: Lab, script: str, code: int) -> None:
    # PID 1 of a pid namespace is deaf to its own signals: a child speaks for it.
    run = script if script.startswith("exit") else f"sh -c '{script}'; exit $?"
    assert oci.run(run, check=False).code == code
    with oci.container().life() as container:
        assert container.exec(script, check=False).code == code
        missing = oci.call("exec", container.name, "/not/there", check=False)
        assert missing.code not in (0, code) or code == 255


# ------------------------------------------------------------------- an error leaves nothing


@proves("an error leaves the environment as it was")
@refutes("an error leaves the environment as it was")
@pytest.mark.parametrize(
    "changes",
    [
        {"process.args": ["/not/there"]},
        {"process.cwd": "/bin/busybox"},
        {"mounts+": [{"destination": "/m", "type": "nope", "source": "x"}]},
        {"linux.sysctl": {"kernel.core_pattern": "x"}},
        {"hooks": {"createRuntime": [{"path": "/bin/false"}]}},
        {"hooks": {"createContainer": [{"path": "/bin/false"}]}},
        {"hooks": {"startContainer": [{"path": "/bin/false"}]}},
        {"linux.resources.cpu.cpus": "900-901"},
        {"process.user.additionalGids": [-5]},
        {"linux.seccomp": {"defaultAction": "SCMP_ACT_NOPE"}},
        {"linux.namespaces+": [{"type": "network", "path": "/dev/null"}]},
    ],
)
def test_a_failed_create_leaves_nothing(oci: Lab, changes: dict[str, Any]) -> None:
    """``refused`` compares mounts, cgroups, processes and states; the same id works at once."""
    oci.refused(changes)
    assert oci.output("echo fine") == "fine"


# ------------------------------------------------------------------- what the specification ignores


@proves("unknown properties are ignored")
@refutes("unknown properties are ignored")
def test_unknown_properties(oci: Lab) -> None:
    changes = {"x-own": {"a": 1}, "process.x-own": 5, "linux.x-own": [1], "root.x-own": "y"}
    assert oci.output("echo fine", changes) == "fine"
    oci.refused({"process.user.uid": "x-own"}, "process.user.uid", "x-own")


@proves("ociVersion")
@refutes("ociVersion")
def test_versions(oci: Lab) -> None:
    for version in ("1.0.0", "1.0.2", "1.1.0", "1.2.0", "1.0.2-dev"):
        assert oci.output("echo fine", {"ociVersion": version}) == "fine"
    if oci.is_runc:
        return
    for bad in ("2.0.0", "one", "1", "", 1.0, ABSENT, "1.0"):
        shown = () if bad is ABSENT else (str(bad),)
        oci.refused({"ociVersion": bad}, "ociVersion", *shown)


# ------------------------------------------------------------------- the command line


def test_list_and_ps(oci: Lab) -> None:
    container = oci.container()
    with container.life():
        listed = json.loads(oci.call("list", "--format", "json").out)
        assert [entry["id"] for entry in listed] == [container.name]
        assert listed[0]["status"] == "running"
        assert container.name in oci.call("list").out
        assert oci.call("list", "--quiet").out.strip() == container.name
        pids = json.loads(oci.call("ps", "--format", "json", container.name).out)
        assert pids == [container.pid()]
        assert "sleep" in oci.call("ps", container.name).out
    assert json.loads(oci.call("list", "--format", "json").out) in ([], None)


def test_spec_writes_a_bundle_that_runs(oci: Lab) -> None:
    bundle = oci.home / "fresh"
    bundle.mkdir()
    oci.rootfs(bundle / "rootfs")
    oci.call("spec", "--bundle", str(bundle))
    config = oci.read(bundle)
    assert config["ociVersion"]
    config["process"]["terminal"] = False
    config["process"]["args"] = ["id", "-u"]
    config["process"].pop("rlimits", None)
    config["linux"]["cgroupsPath"] = f"/{oci.token}/fresh"
    oci.write(bundle, config)
    done = oci.call("run", "--bundle", str(bundle), f"{oci.token}-fresh")
    assert done.out == "0\n"
    assert oci.call("spec", "--bundle", str(bundle), check=False).code != 0  # never over another


@proves("--pid-file")
@refutes("--pid-file")
def test_pid_file_and_log(oci: Lab) -> None:
    container = oci.container()
    pid_file, log = oci.home / "pid", oci.home / "log.json"
    container.create("--pid-file", str(pid_file))
    assert int(pid_file.read_text()) == container.pid()
    flags = ("--log", str(log), "--log-format", "json")
    done = oci.call("start", f"{oci.token}-nothing", flags=flags, check=False)
    assert done.code != 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert entries[-1]["level"] == "error"
    assert entries[-1]["msg"]
    assert entries[-1]["time"]
    container.delete("--force")
    wrong = container.create("--pid-file", "/not/there/pid", check=False)
    assert wrong.code != 0
    assert "/not/there/pid" in wrong.err or oci.is_runc
    for path in (pid_file, log):
        path.unlink()


def test_exec_with_a_process_document(oci: Lab) -> None:
    container = oci.container()
    path = oci.home / "process.json"
    path.write_text(
        json.dumps(
            {
                "args": ["/bin/sh", "-c", "id -u; pwd; echo $A; exit 9"],
                "env": ["PATH=/bin", "A=b"],
                "cwd": "/tmp",
                "user": {"uid": 77, "gid": 88},
            }
        )
    )
    with container.life():
        done = oci.call("exec", "--process", str(path), container.name, check=False)
        assert done.code == 9
        assert done.out.split() == ["77", "/tmp", "b"]
        path.write_text('{"args": ["true"], "cwd": "relative", "user": {"uid": 0, "gid": 0}}')
        done = oci.call("exec", "--process", str(path), container.name, check=False)
        assert done.code != 0
        assert "cwd" in done.err.lower()
        flags = ("--env", "X=1", "--cwd", "/bin", "--user", "5:6")
        said = container.exec("echo $X; pwd; id -u; id -g", *flags).out.split()
        assert said == ["1", "/bin", "5", "6"]
    path.unlink()


def test_exec_detached_with_a_pid_file(oci: Lab) -> None:
    container = oci.container()
    pid_file = oci.home / "exec.pid"
    with container.life():
        container.exec("exec sleep 30", "--detach", "--pid-file", str(pid_file))
        pid = int(pid_file.read_text())
        if not oci.is_runc:  # whose pid file is there before the program
            # Not its `comm`, which the kernel sets after it has closed what tells of the exec.
            assert Path(os.readlink(f"/proc/{pid}/exe")).name == "busybox"
        assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{container.pid()}/ns/pid")
        os.kill(pid, signal.SIGKILL)
    pid_file.unlink()


def test_several_execs_at_once(oci: Lab) -> None:
    container = oci.container()
    with container.life():
        running = [
            subprocess.Popen(
                oci.command("exec", container.name, "/bin/sh", "-c", f"sleep 0.1; echo {number}"),
                stdout=subprocess.PIPE,
            )
            for number in range(8)
        ]
        said = [process.communicate(timeout=60)[0].strip() for process in running]
        assert said == [str(number).encode() for number in range(8)]


def test_an_exec_that_fails_does_not_hold_up_the_containers_end(oci: Lab) -> None:
    """A pid namespace ends when all in it are reaped: the runtime reaps what it put there."""
    container = oci.container()
    with container.life():
        for _ in range(3):
            assert oci.call("exec", container.name, "/not/there", check=False).code != 0
        pid = container.pid()
        zombies = [
            line for line in container.exec("ps -o stat,args").out.split("\n") if "Z" in line
        ]
        assert not zombies
        container.kill("KILL")
        await_exit(pid, timeout_s=0.5)


def test_standard_input_and_output_pass_through(oci: Lab) -> None:
    data = os.urandom(300_000).hex().encode()
    done = oci.run("wc -c; echo problem >&2", stdin=data)
    assert done.out.strip() == "600000"
    assert done.err == "problem\n"


def test_signals_to_run_reach_the_payload(oci: Lab) -> None:
    script = "trap 'echo got-term; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    bundle = oci.bundle(None, script=script)
    process = subprocess.Popen(
        oci.command("run", "--bundle", str(bundle), oci.name_of(bundle)), stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"got-term\n"
    assert process.wait(timeout=20) == 3
    process.stdout.close()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("whatever",),
        ("run",),
        ("run", "--bundle"),
        ("create", "--whatever", "x"),
        ("kill",),
        ("exec",),
        ("state", "a", "b"),
        ("update", "--pids-limit", "x", "a"),
    ],
)
@beyond_runc("prints its help and says 0 to nothing at all")
def test_calls_that_are_none(oci: Lab, words: tuple[str, ...]) -> None:
    done = oci.call(*words, check=False)
    assert done.code != 0
    assert f"{done.err}{done.out}".strip()
    assert "Traceback" not in done.err


@refutes(*(f"state.{name}" for name in ("ociVersion", "id", "bundle")))
def test_a_damaged_state_is_said_and_can_be_deleted(oci: Lab) -> None:
    if oci.is_runc:
        pytest.skip("runc: the layout of the state is its own")
    container = oci.container()
    container.create()
    pid = container.pid()
    records = [path for path in (oci.root / container.name).iterdir() if path.suffix == ".json"]
    assert records
    for record in records:
        record.write_text("{")
    done = oci.call("state", container.name, check=False)
    assert done.code != 0
    assert container.name in done.err
    assert oci.call("list", check=False).code in (0, 1)
    container.delete("--force")
    await_exit(pid)
