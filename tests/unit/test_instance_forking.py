"""What a fork of a machine is given (what its parent has, not what it was promised), and names."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_house import FakeHouse

from twofold.errors import Conflict, IllegalState, InvalidInput
from twofold.instance import ownership, restoring, vm
from twofold.instance.forking import spec_in_force
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, Isolation, State
from twofold.operations import Operation


def running(spec: InstanceSpec, **facts: object) -> Record:
    record = Record.__new__(Record)
    record.spec, record.facts = spec, dict(facts)
    return record


@pytest.mark.parametrize(
    ("promised", "has", "memory_mib", "vcpus"),
    [
        ({}, {"limits": {"memory_bytes": None}, "virtual_cpus": 1}, 512, 1),
        ({"memory_bytes": 1 << 30}, {"limits": {"memory_bytes": None}, "virtual_cpus": 1}, 512, 1),
        ({}, {"limits": {"memory_bytes": 1 << 30}, "virtual_cpus": 1}, 1024, 1),
        ({"cpus": 4.0}, {"limits": {"memory_bytes": None}, "virtual_cpus": 2}, 512, 2),
        ({"cpus": 1.5}, {"limits": {"memory_bytes": None}, "virtual_cpus": 2}, 512, 2),
        ({"memory_bytes": 1 << 28, "cpus": 3.0}, {}, 256, 3),  # of an older daemon
    ],
)
def test_a_fork_has_what_its_parent_has(
    promised: dict[str, object], has: dict[str, object], memory_mib: int, vcpus: int
) -> None:
    spec = InstanceSpec.model_validate({"image": "x", "isolation": Isolation.VM, **promised})
    found = spec_in_force(running(spec, **has))
    assert (vm.memory_bytes(found) >> 20, vm.virtual_cpus(found)) == (memory_mib, vcpus)
    if promised.get("cpus") == 1.5:
        assert found.cpus == 1.5, "the share of its processors is kept"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("pattern", ["", "a b", "ü", "..", "../x", "x/{n}", "-{n}", "x" * 64])
async def test_what_is_no_name_is_refused_before_anything_is_touched(
    tmp_path: Path, pattern: str, count: int
) -> None:
    async with FakeHouse(tmp_path) as house:
        spec = InstanceSpec(image="alpine", command=["sleep"], name="web")
        parent = await house.manager.creation.run(spec, Operation("run"))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InvalidInput) as caught:
            await house.manager.forks.fork(parent, Operation("fork"), count=count, pattern=pattern)
        assert "cannot be a name" in caught.value.message
        assert caught.value.hint.startswith("--name ")
        assert sorted(tmp_path.rglob("*")) == before
        assert [record.name for record in house.manager.records] == ["web"]


@pytest.fixture
async def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    """A house in which ``web`` runs; nobody here may give files away."""
    monkeypatch.setattr(ownership, "shift", lambda *_: None)
    async with FakeHouse(tmp_path) as house:
        spec = InstanceSpec(image="alpine", command=["sleep"], name="web")
        await house.manager.creation.run(spec, Operation("run"))
        yield house


@pytest.mark.parametrize("count", [0, -1, 101, 1000])
async def test_so_many_forks_are_refused(parent: FakeHouse, count: int) -> None:
    web = parent.manager.find("web")
    with pytest.raises(InvalidInput, match=f"^{count} forks: from 1 to 100") as caught:
        await parent.manager.forks.fork(web, Operation("fork"), count=count, pattern=None)
    assert caught.value.hint == "twofold fork --count 100 web"


async def test_a_paused_machine_cannot_answer(parent: FakeHouse) -> None:
    """A paused container can be copied."""
    web = parent.manager.find("web")
    web.change(state=State.PAUSED)
    await parent.manager.forks.fork(web, Operation("fork"), count=1, pattern="copy")
    web.change(spec=web.spec.model_copy(update={"isolation": Isolation.VM}))
    with pytest.raises(IllegalState, match="'web' is paused: its guest has to answer") as caught:
        await parent.manager.forks.fork(web, Operation("fork"), count=1, pattern=None)
    assert caught.value.hint == "twofold resume web; twofold fork web"
    assert [record.name for record in parent.manager.records] == ["web", "copy"]


@pytest.mark.parametrize(
    ("state", "verb"),
    [(State.CREATED, "start"), (State.STOPPED, "start"), (State.SUSPENDED, "resume")],
)
async def test_what_does_not_run_is_not_forked(parent: FakeHouse, state: State, verb: str) -> None:
    web = parent.manager.find("web")
    web.change(state=state)
    with pytest.raises(IllegalState, match=f"'web' is {state.value}: only what runs") as caught:
        await parent.manager.forks.fork(web, Operation("fork"), count=2, pattern=None)
    assert caught.value.hint == f"twofold {verb} web; twofold fork web"
    web.change(state=State.RUNNING)


async def test_two_who_fork_at_once_count_on(parent: FakeHouse) -> None:
    web = parent.manager.find("web")
    forks = parent.manager.forks
    await asyncio.gather(
        *(forks.fork(web, Operation("fork"), count=2, pattern=None) for _ in range(2))
    )
    found = sorted(record.name for record in parent.manager.records)
    assert found == ["web", "web-1", "web-2", "web-3", "web-4"]


async def test_of_two_who_want_one_name_the_second_hears_of_it(parent: FakeHouse) -> None:
    web = parent.manager.find("web")
    forks = parent.manager.forks
    first, second = await asyncio.gather(
        *(forks.fork(web, Operation("fork"), count=1, pattern="x") for _ in range(2)),
        return_exceptions=True,
    )
    assert isinstance(first, list)
    assert isinstance(second, Conflict)
    assert second.hint == "choose another --name, or: twofold rm x"
    await parent.manager.lifecycle.remove(first[0], Operation("rm"), force=True)
    await forks.fork(web, Operation("fork"), count=1, pattern="x")  # the name is free again


async def test_what_a_dead_daemon_was_forking_is_gone_with_the_next(parent: FakeHouse) -> None:
    os.makedirs(f"{parent.paths.instances}/.fork-0123456789abcdef-x/upper")
    rows = [dict(row) for row in parent.store.rows.values()]
    await restoring.restore(parent.new_daemon(), rows, same_boot=True)
    assert [name for name in os.listdir(parent.paths.instances) if name.startswith(".")] == []


async def test_a_name_that_is_taken_is_refused_before_anything_is_copied(
    parent: FakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(ownership, "copy_tree", lambda source, _: copied.append(source))
    web = parent.manager.find("web")
    with pytest.raises(Conflict, match="'web' is taken"):
        await parent.manager.forks.fork(web, Operation("fork"), count=1, pattern="web")
    assert not copied
    assert "freeze" not in parent.keeper.calls


async def test_one_that_is_just_being_started_is_forked_when_it_runs(parent: FakeHouse) -> None:
    web = parent.manager.find("web")
    async with web.lock:
        web.change(state=State.STARTING)
        forking = asyncio.ensure_future(
            parent.manager.forks.fork(web, Operation("fork"), count=1, pattern=None)
        )
        await asyncio.sleep(0)
        web.change(state=State.RUNNING)
    assert [fork.name for fork in await forking] == ["web-1"]


async def test_a_fork_is_none_before_it_has_all_files(
    parent: FakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that dies while they are copied leaves no instance that looks like a fork."""
    seen = []

    def look(tree: str, _: int) -> None:
        seen.append(sorted(os.listdir(os.path.dirname(tree))))

    monkeypatch.setattr(ownership, "shift", look)
    web = parent.manager.find("web")
    forks = await parent.manager.forks.fork(web, Operation("fork"), count=2, pattern="x")
    assert len(seen) == 2
    for files, fork in zip(seen, forks, strict=True):
        assert "upper" in files
        assert "spec.json" not in files
        assert "spec.json" in os.listdir(parent.paths.instance_dir(fork.id))


async def test_files_are_copied_once_for_each_fork(
    parent: FakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the parent stands still, for all of them; the last one takes what was copied then."""
    copy_tree, copied = ownership.copy_tree, []

    def count(source: str, target: str) -> None:
        copied.append(target)
        copy_tree(source, target)

    monkeypatch.setattr(ownership, "copy_tree", count)
    web = parent.manager.find("web")
    upper = Path(parent.paths.instance_dir(web.id)) / "upper"
    (upper / "file").write_text("written")
    for number in (1, 3):
        copied.clear()
        forks = await parent.manager.forks.fork(web, Operation("fork"), count=number, pattern=None)
        assert len(copied) == number
        for fork in forks:
            has = Path(parent.paths.instance_dir(fork.id)) / "upper"
            assert [one.name for one in has.iterdir()] == ["file"]
            assert (has / "file").read_text() == "written"
    assert (upper / "file").read_text() == "written"
