"""Which template fits, and what is said when there is none."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_instance_plans import PARTS, PLACE, ROOT, wish

from twofold.errors import InvalidInput, NoSpace
from twofold.instance import templates
from twofold.instance.collaborators import MachineParts
from twofold.instance.forking import Copied
from twofold.instance.place import ImageRoot
from twofold.instance.record import Record
from twofold.instance.templates import TemplateDesk
from twofold.model.instance import InstanceSpec
from twofold.model.paths import Paths
from twofold.operations import Operation
from twofold.storage.templates import Opened, Template, TemplateStore

VM = {"isolation": "vm"}


def desk(tmp_path: Path) -> TemplateDesk:
    nobody: Any = None
    store = TemplateStore(str(tmp_path / "templates"))
    parties = dict.fromkeys(("keeper", "machines", "records", "ranges", "scope"), nobody)
    return TemplateDesk(store, paths=Paths(str(tmp_path)), **parties)


def key(
    tmp_path: Path, spec: InstanceSpec, parts: MachineParts = PARTS, image: ImageRoot = ROOT
) -> str:
    return templates._key(desk(tmp_path)._frozen(spec, image, parts), parts)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("jail", "/cache/jail-another-qemu"),
        ("boot", "/kernels/another-kernel-or-agent"),
        ("disk", "/images/erofs/another-image.erofs"),
        ("accelerator", "kvm"),
    ],
)
def test_another_qemu_kernel_agent_or_image_wants_another_template(
    tmp_path: Path, part: str, value: str
) -> None:
    changed = replace(PARTS, **{part: value})
    assert key(tmp_path, wish(**VM), changed) != key(tmp_path, wish(**VM))


@pytest.mark.parametrize(
    "shape",
    [
        {"hardware": "emulated"},
        {"memory_bytes": 256 << 20},
        {"cpus": 2.0},
        {"network": "none"},
        {"volumes": [{"source": "/srv", "target": "/data"}]},
        {"system": True},
        {"nested": True},
    ],
    ids=lambda shape: next(iter(shape)),
)
def test_another_shape_wants_another_template(tmp_path: Path, shape: dict[str, Any]) -> None:
    parts = replace(PARTS, accelerator="kvm") if "nested" in shape else PARTS
    assert key(tmp_path, wish(**VM, **shape), parts) != key(tmp_path, wish(**VM), parts)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "web"},
        {"hostname": "box"},
        {"command": ["serve"], "env": ["A=b"], "workdir": "/srv", "user": "1000"},
        {"tty": True, "interactive": True, "auto_remove": True},
        {"ports": [{"host_port": 8080, "guest_port": 80}]},
        {"cpus": 0.5},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_a_fork_is_told_later_shapes_no_template(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    assert key(tmp_path, wish(**VM, **fields)) == key(tmp_path, wish(**VM))


def test_the_environment_of_a_systems_init_shapes_its_template(tmp_path: Path) -> None:
    other = replace(ROOT, config=ROOT.config.model_copy(update={"env": ["PATH=/x"]}))
    spec = wish(**VM, system=True)
    assert key(tmp_path, spec, image=other) != key(tmp_path, spec)
    assert key(tmp_path, wish(**VM), image=other) == key(tmp_path, wish(**VM))


async def test_who_boots_from_cold_hears_why_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one that just failed is not tried for a while; that is no reason to be silent."""
    house, tries, clock = desk(tmp_path), [], [1000.0]

    async def fail(*_: object) -> None:
        tries.append(1)
        raise NoSpace("the disk is full", hint="df -h")

    monkeypatch.setattr(house, "_ready", fail)
    monkeypatch.setattr(templates, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    record = Record.__new__(Record)
    record.spec = wish(**VM)
    said = []
    for at in (1000.0, 1060.0, 1599.0, 1600.0, 2799.0, 2800.0):
        clock[0] = at
        operation = Operation("run")
        assert await house.fork(record, ROOT, PLACE, PARTS, operation) is None
        said += operation.warnings
    assert len(tries) == 3  # the second time it is left alone for twice as long
    why = "booting from cold: the disk is full"
    later = "it is tried again in {} min; --cold asks for none"
    shortly = (why, later.format(1))
    tried = (why, "df -h")
    assert said == [tried, (why, later.format(9)), shortly, tried, shortly, tried]
    assert not os.path.exists(tmp_path / "templates")


def _open_descriptors() -> list[str]:
    with os.scandir("/proc/self/fd") as found:
        return sorted(entry.name for entry in found)


def _no_plan(*_: object, birth: str, **__: object) -> None:
    if birth != "template":
        raise InvalidInput("no such machine")


async def test_a_fork_that_cannot_be_planned_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = desk(tmp_path)
    (tmp_path / "disk").write_bytes(b"disk")
    template = Template(key="k", directory="", facts={}, shape={}, checksums={}, created_at=0.0)

    async def ready(*_: object) -> Opened:
        memory, state, data = (os.open(tmp_path / "disk", os.O_RDONLY) for _ in range(3))
        return Opened(template=template, memory=memory, state=state, data_disk=data)

    monkeypatch.setattr(house, "_ready", ready)
    monkeypatch.setattr(house, "_frozen", lambda *_: None)
    monkeypatch.setattr(templates, "_key", lambda *_: "k")
    monkeypatch.setattr(templates.vm, "vm_plan", _no_plan)
    record = Record(id="1" * 16, name="m", spec=wish(**VM), image_digest="sha256:1", id_base=0)
    place = replace(PLACE, directory=str(tmp_path))
    before = _open_descriptors()
    with pytest.raises(InvalidInput):
        await house.fork(record, ROOT, place, PARTS, Operation("run"))
    assert (tmp_path / "data.img").read_bytes() == b"disk"  # it came as far as that
    assert _open_descriptors() == before


def test_a_copy_without_its_state_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(id="1" * 16, name="m", spec=wish(**VM), image_digest="sha256:1", id_base=0)
    memory = os.memfd_create("memory")
    try:
        record.copied = Copied(memory_fd=memory, directory=str(tmp_path), mac="02:00:00:00:00:01")
        before = _open_descriptors()
        with pytest.raises(FileNotFoundError):
            desk(tmp_path).fork_of_copy(record, ROOT, PLACE, PARTS)
        monkeypatch.setattr(templates.vm, "vm_plan", _no_plan)
        with pytest.raises(InvalidInput):
            desk(tmp_path).fork_of_copy(record, ROOT, PLACE, PARTS)
        assert _open_descriptors() == before
    finally:
        os.close(memory)
