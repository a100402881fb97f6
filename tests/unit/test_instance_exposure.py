"""What stands in between, in words: verified where the witness agrees, else a warning."""

import os
from dataclasses import replace
from typing import Any

import pytest
from test_instance_plans import PARTS  # the same machine as the golden plans

from twofold.instance import vm
from twofold.instance.barriers import Scene
from twofold.instance.container import container_plan
from twofold.instance.exposure import describe
from twofold.instance.place import ImageRoot, Place
from twofold.instance.record import Record
from twofold.instance.witness import NAMESPACES, MountSeen, ProcessSeen, Witness, observe
from twofold.linux import capabilities
from twofold.model.exposure import Barrier, Basis
from twofold.model.image import ImageConfig
from twofold.model.instance import Device, InstanceSpec, Isolation, Port, State, Volume
from twofold.runtime import plan
from twofold.runtime.seccomp import Reach

BASE = 1 << 20
NETWORK = plan.Network(
    host_link="tf0-abc",
    mac="02:00:0a:d1:00:05",
    address="10.209.0.5",
    prefix=22,
    gateway="10.209.0.1",
)
PLACE = Place(directory="/i", run_dir="/r", cgroup="twofold/abc", network=NETWORK)
IMAGE = ImageRoot(digest="sha256:1", config=ImageConfig(), layers=("/l",))


def record(**fields: Any) -> Record:
    spec = InstanceSpec(image="debian", command=["sleep"], **fields)
    made = Record(id="3f2a9c0d1e4b5a67", name="web", spec=spec, image_digest="", id_base=BASE)
    made.change(state=State.RUNNING, network=NETWORK)
    return made


def container_scene(**fields: Any) -> Scene:
    """A container as it should be, its witness agreeing."""
    made = record(**fields)
    sandbox = container_plan(made.spec, IMAGE, made.allocation, PLACE)
    mask = capabilities.mask_of(sandbox.process.capabilities)
    process = ProcessSeen(
        uid=BASE,
        bounding=mask,
        effective=mask,
        permitted=mask,
        no_new_privs=sandbox.process.no_new_privs,
        seccomp=2 if sandbox.process.seccomp else 0,
        filters=1,
    )
    mounts = [
        MountSeen(target="/", kind="overlay", read_only=sandbox.rootfs.read_only),
        MountSeen(target="/sys", kind="sysfs", read_only=True),
        MountSeen(target="/proc/sys", kind="proc", read_only=True),
        MountSeen(target="/proc/keys", kind="devtmpfs", read_only=True),
    ]
    mounts += [
        MountSeen(target=volume.target, kind="ext4", read_only=volume.read_only)
        for volume in made.spec.volumes
    ]
    witness = Witness(
        processes=(process,),
        own_namespaces=frozenset(NAMESPACES),
        id_map=((0, BASE, 65536),),
        mounts=tuple(mounts),
        devices=("null", "zero", "tty"),
        label="",
    )
    return _scene(made, sandbox, witness)


def vm_scene(**fields: Any) -> Scene:
    made = record(isolation=Isolation.VM, **fields)
    moment = vm.Moment(time=0.0, entropy="")
    sandbox = vm.vm_plan(made.spec, IMAGE, made.allocation, PLACE, parts=PARTS, moment=moment)
    process = ProcessSeen(
        uid=BASE + 1000,
        bounding=0,
        effective=0,
        permitted=0,
        no_new_privs=True,
        seccomp=2,
        filters=2,
    )
    witness = Witness(
        processes=(process,),
        own_namespaces=frozenset(NAMESPACES),
        id_map=((0, BASE, 65536),),
        mounts=(MountSeen(target="/", kind="ext4", read_only=True),),
        devices=("null",),
        label="",
    )
    return _scene(made, sandbox, witness)


def _scene(made: Record, sandbox: plan.SandboxPlan, witness: Witness) -> Scene:
    limit = sandbox.cgroup.memory_bytes
    return Scene(
        record=made,
        plan=sandbox,
        witness=witness,
        host_kernel="6.18.0",
        reach=Reach(allowed=299, by_argument=("clone",), known=368),
        bridge="tf0",
        linked=True,
        kernel_paths=frozenset(["/proc/keys", "/proc/sys"]),
        apparmor=False,
        selinux=False,
        limits_seen={"memory_bytes": limit and limit // 4096 * 4096},
    )


def barriers(scene: Scene) -> dict[str, Barrier]:
    return {barrier.topic: barrier for barrier in describe(scene).barriers}


@pytest.mark.parametrize("scene", [container_scene(), vm_scene()], ids=["container", "vm"])
def test_what_is_as_planned_is_verified_and_no_warning(scene: Scene) -> None:
    found = barriers(scene)
    unseen = {"machine", "processor", "QEMU's open files", "kernel"}
    assert {topic for topic, one in found.items() if one.basis is not Basis.VERIFIED} <= unseen
    assert {topic for topic, one in found.items() if one.warning} <= {"processor"}


@pytest.mark.parametrize("make", [container_scene, vm_scene])
def test_without_a_witness_everything_is_planned(make: Any) -> None:
    scene = replace(make(), witness=None, limits_seen=None, linked=None)
    found = barriers(scene)
    known = {"kernel", "security labels"}
    assert all(one.basis is Basis.PLANNED for topic, one in found.items() if topic not in known)


def seen(scene: Scene, **changes: Any) -> Scene:
    assert scene.witness
    return replace(scene, witness=replace(scene.witness, **changes))


def process(scene: Scene, **changes: Any) -> Scene:
    assert scene.witness
    first = scene.witness.first
    return seen(scene, processes=(first, replace(first, **changes)))


@pytest.mark.parametrize(
    ("scene", "topic", "said"),
    [
        (seen(container_scene(), id_map=((0, 0, 4294967295),)), "users", "map"),
        (seen(container_scene(), own_namespaces=frozenset({"mnt"})), "namespaces", "only mnt"),
        (process(container_scene(), bounding=1 << 21), "capabilities", "planned"),
        (process(container_scene(), seccomp=0), "system calls", "mode 0"),
        (process(container_scene(), no_new_privs=False), "set-uid programs", "without"),
        (seen(container_scene(), devices=("null", "sda")), "devices", "also sda"),
        (seen(container_scene(read_only=True), mounts=()), "root", "found"),
        (seen(container_scene(), mounts=()), "kernel's files", "/proc/keys"),
        (replace(container_scene(), linked=False), "network", "not on the bridge"),
        (
            replace(container_scene(memory_bytes=64 << 20), limits_seen={"memory_bytes": None}),
            "limits",
            "None",
        ),
        (process(vm_scene(), uid=0), "QEMU's user", "[0, "),
        (process(vm_scene(), permitted=2, effective=2), "QEMU's capabilities", "0x2"),
        (seen(vm_scene(), devices=("sda",)), "QEMU's files", "sda"),
        (
            seen(vm_scene(), processes=(replace(vm_scene().witness.first, filters=1),)),  # type: ignore[union-attr]
            "QEMU's system calls",
            "[1]",
        ),
    ],
)
def test_what_differs_is_a_warning(scene: Scene, topic: str, said: str) -> None:
    found = barriers(scene)[topic]
    assert found.basis is Basis.DIFFERS
    assert found.warning
    assert said in found.words


def test_a_volume_that_is_writable_against_the_plan() -> None:
    scene = container_scene(volumes=[Volume(source="/srv", target="/data", read_only=True)])
    assert barriers(scene)["files of the host"].words.startswith("/srv at /data, read-only")
    mount = MountSeen(target="/data", kind="ext4", read_only=False)
    assert scene.witness
    wrong = seen(scene, mounts=(*scene.witness.mounts[:-1], mount))
    assert barriers(wrong)["files of the host"].basis is Basis.DIFFERS


def test_what_the_user_opened_is_a_warning() -> None:
    scene = container_scene(
        cap_add=["NET_RAW"], seccomp="unconfined", devices=[Device(path="/dev/fuse")]
    )
    warned = [barrier.topic for barrier in describe(scene).barriers if barrier.warning]
    assert warned == ["weakened"] * 3 + ["system calls", "devices"]
    assert "NET_RAW" in barriers(scene)["capabilities"].details


def test_ports_and_kvm_are_said() -> None:
    scene = container_scene(ports=[Port(host_port=8080, guest_port=80)])
    words = barriers(scene)["network"].words
    assert "0.0.0.0:8080/tcp → 80" in words
    assert "every network of the host" in words
    kvm = vm_scene()
    assert kvm.plan.vm
    argv = tuple("kvm" if word.startswith("tcg") else word for word in kvm.plan.vm.argv)
    scene = replace(kvm, plan=replace(kvm.plan, vm=replace(kvm.plan.vm, argv=argv)))
    assert not barriers(scene)["processor"].warning


def test_the_witness_sees_this_very_process() -> None:
    found = observe(os.getpid(), [os.getpid()])
    assert found is not None
    assert found.own_namespaces == frozenset()
    assert found.first.uid == os.geteuid()
    assert any(mount.target == "/proc" for mount in found.mounts)
    assert "null" in found.devices
    assert observe(2**22 + 1, []) is None
