"""``hooks`` and ``annotations``: who is called when, where, with what."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from oci_lab import Container, Lab
from oci_spec import HOOKS, beyond_runc, proves, refutes

BEFORE_START = ("prestart", "createRuntime", "createContainer")


def noting(oci: Lab, name: str, *, more: str = "") -> dict[str, Any]:
    """A hook of the host that notes its name, namespaces and the state it is given."""
    script = (
        f'read state; echo {name} >> {oci.home}/order; echo "$state" > {oci.home}/{name}.state; '
        f"readlink /proc/self/ns/mnt > {oci.home}/{name}.ns; {more}"
    )
    return {"path": "/bin/sh", "args": ["sh", "-c", script]}


@pytest.fixture
def notes(oci: Lab) -> Any:
    """Reads what the hooks wrote, and takes it away afterwards."""

    def read(name: str) -> str:
        path = oci.home / name
        return path.read_text() if path.exists() else ""

    yield read
    for path in oci.home.iterdir():
        if path.name == "order" or path.suffix in (".state", ".ns", ".txt"):
            path.unlink()


def with_hooks(oci: Lab, hooks: dict[str, Any], **options: Any) -> Container:
    return oci.container({"hooks": hooks, **options.pop("changes", {})}, **options)


# ------------------------------------------------------------------- when


@beyond_runc("1.1 runs poststart before start")
@proves(*(f"hooks.{name}" for name in HOOKS))
@proves("hooks: listed order", "hooks: state on stdin")
def test_every_hook_in_its_time(oci: Lab, notes: Any) -> None:
    """Those of the host twice each; the container's own writes into the container."""
    hooks = {
        name: [noting(oci, f"{name}1"), noting(oci, f"{name}2")]
        for name in HOOKS
        if name != "startContainer"
    }
    script = 'read state; echo "$state" > /tmp/hook.state; echo startContainer > /tmp/order'
    hooks["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
    container = with_hooks(oci, hooks, script="cat /tmp/order; echo payload; exec sleep 60")
    host = os.readlink("/proc/self/ns/mnt")

    def order() -> list[str]:
        return str(notes("order")).split()

    container.create()
    created = [f"{name}{number}" for name in BEFORE_START for number in (1, 2)]
    assert order() == created
    assert notes("prestart1.ns").strip() == notes("createRuntime1.ns").strip() == host
    assert notes("createContainer1.ns").strip() != host
    inside = container.bundle / "rootfs/tmp"
    assert not (inside / "order").exists()
    container.start()
    assert container.await_output("payload").split() == ["startContainer", "payload"]
    started = [*created, "poststart1", "poststart2"]
    assert order() == started
    pid = container.pid()
    container.delete("--force")
    assert order() == [*started, "poststop1", "poststop2"]
    assert notes("poststop1.ns").strip() == host

    statuses = {}
    for name in (*created, *order()[-4:]):
        state = json.loads(notes(f"{name}.state"))
        assert state["id"] == container.name
        assert state["bundle"] == str(container.bundle)
        assert state["ociVersion"]
        statuses[name] = state["status"]
        if name.startswith(("prestart", "createRuntime", "poststart")):
            assert state["pid"] == pid
    assert statuses["createRuntime1"] in ("creating", "created")
    assert statuses["poststart1"] == "running"
    assert statuses["poststop1"] == "stopped"
    state = json.loads((inside / "hook.state").read_text())
    assert state["pid"] in (1, pid)  # as the container sees it, says the specification
    assert state["status"] in ("created", "creating")


@beyond_runc("1.1 runs poststart before start")
@refutes(*(f"hooks.{name}" for name in HOOKS))
@refutes("hooks: listed order", "hooks: state on stdin")
def test_hooks_out_of_their_time_are_not_called(oci: Lab, notes: Any) -> None:
    """Created and deleted without a start: neither startContainer nor poststart ran."""
    hooks = {name: [noting(oci, name)] for name in HOOKS if name != "startContainer"}
    container = with_hooks(oci, hooks)
    container.create()
    container.delete("--force")
    assert notes("order").split() == [*BEFORE_START, "poststop"]
    assert oci.output("echo fine") == "fine"
    assert notes("order").split() == [*BEFORE_START, "poststop"]


@proves("hooks.createContainer")
def test_create_container_sees_the_containers_mounts(oci: Lab, notes: Any) -> None:
    """In the container's mount namespace, before its root is turned: host paths resolve."""
    more = f"grep -c {oci.home} /proc/self/mountinfo > {oci.home}/mounts.txt"
    with with_hooks(oci, {"createContainer": [noting(oci, "createContainer", more=more)]}).life():
        assert int(notes("mounts.txt")) >= 3


# ------------------------------------------------------------------- fields


@proves("hooks.*[].path", "hooks.*[].args", "hooks.*[].env")
@refutes("hooks.*[].args", "hooks.*[].env")
def test_arguments_and_environment(oci: Lab, notes: Any) -> None:
    script = f'echo "$0|$1|$A|$B" > {oci.home}/call.txt; env | wc -l >> {oci.home}/call.txt'
    hook = {
        "path": "/bin/sh",
        "args": ["zero", "-c", script, "one", "two"],
        "env": ["A=1", "B=2 3"],
    }
    with with_hooks(oci, {"createRuntime": [hook]}).life():
        assert notes("call.txt").splitlines()[0] == "one|two|1|2 3"
    plain = {"path": "/bin/sh", "args": ["zero", "-c", script]}
    with with_hooks(oci, {"createRuntime": [plain]}).life():
        assert notes("call.txt").splitlines()[0] == "zero|||"


@proves("hooks.*[].timeout")
@refutes("hooks.*[].timeout")
@pytest.mark.parametrize("name", ["createRuntime", "createContainer"])
def test_a_hook_that_takes_too_long(oci: Lab, name: str) -> None:
    slow = {"path": "/bin/sleep", "args": ["sleep", "30"], "timeout": 1}
    oci.refused({"hooks": {name: [slow]}}, name, "1")
    quick = {"path": "/bin/sleep", "args": ["sleep", "0.1"], "timeout": 20}
    assert oci.output("echo fine", {"hooks": {name: [quick]}}) == "fine"


@refutes(*(f"hooks.{name}" for name in HOOKS))
@pytest.mark.parametrize("name", [n for n in HOOKS if n != "poststop"])
def test_a_hook_that_fails_stops_the_container(oci: Lab, name: str) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo because >&2; exit 3"]}
    if name == "poststart":
        if oci.is_runc:
            pytest.skip("runc: leaves the container running")
        container = with_hooks(oci, {name: [hook]})
        container.create()
        done = container.start(check=False)
        assert done.code != 0
        assert name in done.err
        oci.assert_nothing_new(frozenset())
        oci.containers.clear()
        return
    said = oci.refused({"hooks": {name: [hook]}}, name, "3")
    assert "because" in said or oci.is_runc


@beyond_runc("1.1 stops at the first that fails")
@proves("hooks.poststop")
def test_a_poststop_hook_that_fails_is_a_warning(oci: Lab, notes: Any) -> None:
    failing = {"path": "/bin/false"}
    container = with_hooks(oci, {"poststop": [failing, noting(oci, "after")]})
    container.create()
    done = container.delete("--force")
    if not oci.is_runc:
        assert "poststop" in done.err
    assert notes("order").split() == ["after"]


@refutes("hooks.*[].path", "hooks.*[].args", "hooks.*[].env", "hooks.*[].timeout")
@pytest.mark.parametrize(
    ("hook", "word"),
    [
        ({"args": ["x"]}, "path"),
        ({"path": "bin/true"}, "path"),
        ({"path": 5}, "path"),
        ({"path": "/bin/true", "args": "x"}, "args"),
        ({"path": "/bin/true", "env": {"A": "b"}}, "env"),
        ({"path": "/bin/true", "timeout": 0}, "timeout"),
        ({"path": "/bin/true", "timeout": -1}, "timeout"),
        ({"path": "/bin/true", "timeout": "1"}, "timeout"),
    ],
)
@beyond_runc("takes several")
def test_hooks_that_are_none_are_refused(oci: Lab, hook: dict[str, Any], word: str) -> None:
    oci.refused({"hooks": {"createRuntime": [hook]}}, f"hooks.createRuntime[0].{word}")


def test_a_hook_that_is_not_there(oci: Lab) -> None:
    oci.refused({"hooks": {"createRuntime": [{"path": "/not/there"}]}}, "/not/there")
    inside_only = {"path": "/bin/busybox-not"}
    oci.refused({"hooks": {"startContainer": [inside_only]}}, "/bin/busybox-not")


@beyond_runc("ignores what it does not know")
def test_unknown_hooks_and_wrong_shapes(oci: Lab) -> None:
    oci.refused({"hooks": []}, "hooks")
    oci.refused({"hooks": {"createRuntime": {"path": "/bin/true"}}}, "hooks.createRuntime")
    assert oci.output("echo fine", {"hooks": {"x-own": [5]}}) == "fine"


# ------------------------------------------------------------------- annotations


@proves("annotations", "state.annotations")
@refutes("annotations", "state.annotations")
def test_annotations_are_in_the_state(oci: Lab) -> None:
    annotations = {"com.example.key": "value", "org.x": ""}
    with oci.container({"annotations": annotations}).life() as container:
        assert container.state()["annotations"] == annotations
    with oci.container().life() as container:
        assert not container.state().get("annotations")
    for value in ({"a": 5}, ["a"], "x"):
        oci.refused({"annotations": value}, "annotations")
    if not oci.is_runc:
        oci.refused({"annotations": {"": "x"}}, "annotations")


def test_hooks_write_nothing_into_the_lab(oci: Lab) -> None:
    """The fixture's own claim: nothing of these tests stays in the lab's directory."""
    assert not (Path(oci.home) / "order").exists()
