"""Plans as JSON, compared with golden files (``UPDATE_GOLDEN=1`` rewrites them), and the rules."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.instance import own_os, vm
from twofold.instance.collaborators import MachineParts
from twofold.instance.container import container_plan
from twofold.instance.idrange import COUNT, FIRST, Ranges, foreign
from twofold.instance.place import Allocation, ImageRoot, Place, hostname_of
from twofold.instance.process import arguments, environment, exec_process, main_process, signal_name
from twofold.model.image import ImageConfig
from twofold.model.instance import InstanceSpec
from twofold.runtime import plan

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plans"
CONFIG = ImageConfig(
    entrypoint=["/entry"],
    cmd=["serve"],
    env=["PATH=/opt/bin:/bin", "MODE=image"],
    working_dir="/srv",
    user="www-data",
    stop_signal="SIGQUIT",
)
ROOT = ImageRoot(digest="sha256:1", config=CONFIG, layers=("/layers/top", "/layers/bottom"))
ALLOCATION = Allocation(
    id="3f2a9c0d1e4b5a67",
    name="web_1",
    id_base=1 << 20,
    address="10.209.0.5",
    mac="02:00:0a:d1:00:05",
)
NETWORK = plan.Network(
    host_link="tf0v5",
    mac="02:00:0a:d1:00:05",
    address="10.209.0.5",
    prefix=22,
    gateway="10.209.0.1",
)
PLACE = Place(
    directory="/var/lib/twofold/instances/3f2a9c0d1e4b5a67",
    run_dir="/run/twofold/instances/3f2a9c0d1e4b5a67",
    cgroup="twofold/3f2a9c0d1e4b5a67",
    network=NETWORK,
    resolv_conf="nameserver 192.0.2.1\n",
)
PARTS = MachineParts(
    jail="/cache/jail-1",
    boot="/kernels/6.1-1",
    disk="/images/erofs/1.erofs",
    accelerator="tcg",
    accelerator_reason="there is no /dev/kvm",
    kernel="6.1.0",
)
MOMENT = vm.Moment(time=1767225600.0, entropy="00" * 32)

WISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "command": ["one", "two"],
        "env": ["MODE=user", "EMPTY="],
        "workdir": "/work",
        "user": "1000:1000",
        "volumes": [
            {"source": "/srv/data", "target": "/data"},
            {"source": "/srv/conf", "target": "/conf", "read_only": True},
        ],
        "cpus": 1.5,
        "memory_bytes": 256 << 20,
        "pids": 64,
        "hostname": "box.example",
        "tty": True,
        "auto_remove": True,
    },
    "system": {"system": True},
    "alone": {"network": "none", "interactive": True},
}


def wish(**fields: Any) -> InstanceSpec:
    return InstanceSpec(image="app", **fields)


def place_of(spec: InstanceSpec) -> Place:
    if spec.network == "none":
        return Place(directory=PLACE.directory, run_dir=PLACE.run_dir, cgroup=PLACE.cgroup)
    return PLACE


def compare(name: str, made: plan.SandboxPlan) -> None:
    text = json.dumps(without_command_line(made.to_dict()), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    whole = json.dumps(made.to_dict())
    assert json.dumps(plan.from_dict(json.loads(whole)).to_dict()) == whole


def without_command_line(data: dict[str, Any]) -> dict[str, Any]:
    """QEMU's command line has golden files of its own (``golden/qemu``)."""
    if data["vm"]:
        assert data["process"]["argv"] == data["vm"]["argv"]
        data["process"]["argv"] = data["vm"]["argv"] = [data["vm"]["argv"][0], "…"]
    return data


@pytest.mark.parametrize("name", WISHES)
def test_container(name: str) -> None:
    spec = wish(**WISHES[name])
    compare(f"container-{name}", container_plan(spec, ROOT, ALLOCATION, place_of(spec)))


@pytest.mark.parametrize("hardware", ["virtio", "emulated"])
@pytest.mark.parametrize("name", WISHES)
def test_vm(name: str, hardware: str) -> None:
    fields = dict(WISHES[name])
    if hardware == "emulated":
        fields.pop("volumes", None)
    spec = wish(isolation="vm", hardware=hardware, **fields)
    made = vm.vm_plan(spec, ROOT, ALLOCATION, place_of(spec), parts=PARTS, moment=MOMENT)
    compare(f"vm-{hardware}-{name}", made)


def test_vm_of_another_processor() -> None:
    """All but the command line is as of this host's own."""
    spec = wish(isolation="vm", **WISHES["plain"])
    own, other = (
        without_command_line(
            vm.vm_plan(
                spec.model_copy(update={"arch": arch}),
                *(ROOT, ALLOCATION, place_of(spec)),
                parts=PARTS,
                moment=MOMENT,
            ).to_dict()
        )
        for arch in (None, "aarch64")
    )
    assert own["vm"].pop("argv") == ["/usr/bin/qemu-system-x86_64", "…"]
    assert other["vm"].pop("argv") == ["/usr/bin/qemu-system-aarch64", "…"]
    assert own["vm"].pop("ready_timeout_s") < other["vm"].pop("ready_timeout_s")
    del own["process"]["argv"], other["process"]["argv"]
    assert own == other


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("/entry", "serve")),
        ({"command": ["x"]}, ("/entry", "x")),
        ({"command": []}, ("/entry", "serve")),
        ({"entrypoint": ["/other"]}, ("/other",)),
        ({"entrypoint": ["/other"], "command": ["x", "y"]}, ("/other", "x", "y")),
        ({"entrypoint": [], "command": ["x"]}, ("x",)),
        ({"system": True}, ("/sbin/init",)),
    ],
)
def test_arguments(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert arguments(wish(**fields), CONFIG) == expected


@pytest.mark.parametrize(
    "fields", [{"entrypoint": []}, {"system": True, "command": ["x"]}, {"entrypoint": [""]}]
)
def test_arguments_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        arguments(wish(**fields), CONFIG)
    assert caught.value.hint


def test_environment() -> None:
    base = ["PATH=/p", "A=1", "B=2", "broken"]
    found = environment(base, ["A=9", "B", "C=a=b", "D="], tty=True)
    assert found == ("PATH=/p", "TERM=xterm", "A=9", "broken=", "C=a=b", "D=")
    for bad in ("", "=x", "a\nb=1"):
        with pytest.raises(InvalidInput):
            environment([], [bad])


def test_exec_inherits_the_walls_and_changes_what_was_asked() -> None:
    main = main_process(wish(env=["A=1"]), CONFIG, "web")
    process = exec_process(main, ["ps"], env=["A=2"], user="root", workdir="/")
    assert (process.argv, process.user, process.cwd, process.init) == (("ps",), "root", "/", False)
    assert "A=2" in process.env
    assert process.capabilities == main.capabilities
    assert process.seccomp == main.seccomp
    with pytest.raises(InvalidInput):
        exec_process(main, [])


@pytest.mark.parametrize(
    ("word", "expected"),
    [("term", "SIGTERM"), ("SIGHUP", "SIGHUP"), ("9", "9"), ("RTMIN+3", "SIGRTMIN+3")],
)
def test_signal_names(word: str, expected: str) -> None:
    assert signal_name(word) == expected


@pytest.mark.parametrize("word", ["", "-9", "SIG TERM", "x" * 50, "SIGTERM\n;", "१"])
def test_bad_signal_names(word: str) -> None:
    with pytest.raises(InvalidInput):
        signal_name(word)


@pytest.mark.parametrize(
    "target", ["/", "//", "/proc", "/proc/x", "/sys/fs", "//dev", "/a/../proc", "rel"]
)
def test_volume_targets_refused(target: str) -> None:
    spec = wish(volumes=[{"source": "/srv", "target": target}])
    with pytest.raises(InvalidInput):
        container_plan(spec, ROOT, ALLOCATION, PLACE)


def test_a_vm_needs_memory() -> None:
    with pytest.raises(InvalidInput, match="too small"):
        vm.check(wish(isolation="vm", memory_bytes=64 << 20))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"memory_bytes": (16 << 40) + (1 << 20)}, "more than a virtual machine can have: 16 TiB"),
        ({"cpus": 256}, "256 virtual CPUs: a virtual machine has 1 to 255"),
    ],
)
def test_what_no_machine_can_have_is_refused_when_it_is_said(
    said: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        vm.check(wish(isolation="vm", **said))
    with pytest.raises(InvalidInput, match=words):
        own_os.check(wish(isolation="vm", media="disk", **said))


def test_host_names() -> None:
    assert hostname_of("web_1.x", None) == "web-1-x"
    assert hostname_of("web", "my.host") == "my.host"
    assert hostname_of("_", None) == "twofold"


def test_id_ranges_are_distinct_and_avoid_those_of_users() -> None:
    own = f"alice:{FIRST}:65536\nnonsense\nbob:x:1\n"
    given = foreign([own, f"carol:{FIRST + 3 * COUNT - 1}:2"])
    ranges, taken = Ranges(given), set()
    for _ in range(200):
        taken.add(ranges.allocate(taken))
    assert len(taken) == 200
    assert FIRST not in taken
    assert not taken & {FIRST + 2 * COUNT, FIRST + 3 * COUNT}
    assert all(base % COUNT == 0 for base in taken)


def test_a_freed_range_rests_before_it_is_used_again() -> None:
    ranges = Ranges()
    first = ranges.allocate(set())
    assert ranges.allocate(set()) != first
    later = Ranges()
    later.resume_after(first)
    assert later.allocate(set()) != first
