"""Snapshots and sleep among stand-ins: what fails changes nothing, what died is settled."""

import asyncio
import os
import shutil
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fake_house import FakeHouse
from test_storage_snapshots import keep_moment

from twofold.errors import Conflict, IllegalState, NoSpace, NotFound, TwofoldError, Unsupported
from twofold.instance import restart_policy, restoring, snapshots
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, State, Volume
from twofold.operations import Operation
from twofold.runtime import plan
from twofold.storage.snapshots import SUSPENDED, Snapshot, SnapshotStore


async def run(house: FakeHouse, **fields: Any) -> Record:
    wish = InstanceSpec(image="alpine", command=["sleep"], name="web", **fields)
    return await house.manager.creation.run(wish, Operation("run"))


async def machine(
    house: FakeHouse, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> tuple[Record, list[str]]:
    """One that runs, and whoever was told to go on."""
    went_on: list[str] = []

    async def resume(run_dir: str) -> None:
        went_on.append(run_dir)

    monkeypatch.setattr(house.machines, "resume", resume)
    return await run(house, isolation="vm", cold=True, **fields), went_on


async def reborn(house: FakeHouse, **options: Any) -> restoring.Report:
    rows = [dict(row) for row in house.store.rows.values()]
    return await restoring.restore(house.new_daemon(), rows, **{"same_boot": True, **options})


def files(house: FakeHouse, record: Record) -> SnapshotStore:
    return SnapshotStore(house.paths.instance_dir(record.id))


def sleep(house: FakeHouse, record: Record) -> None:
    directory = house.paths.instance_dir(record.id)
    keep_moment(files(house, record).begin_suspending(), directory, "mind")
    files(house, record).suspend()


def fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        os.mkdir(target)
        raise NoSpace("no space", hint="df -h")

    monkeypatch.setattr(snapshots, "copy", full)


# -- verbs ------------------------------------------------------------------------------------


async def test_a_container_stands_still_while_it_is_copied_and_not_longer(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        made = await house.manager.snapshots.create(
            record, Operation("snapshot"), name=None, memory=False, comment="first"
        )
        assert (made.name, made.consistency, made.comment) == ("snap-1", "frozen", "first")
        assert [call for call in house.keeper.calls if call in ("freeze", "thaw")] == [
            *("freeze", "thaw")
        ]
        assert [one.name for one in await house.manager.snapshots.select(record)] == ["snap-1"]


async def test_without_space_nothing_is_left_and_it_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        verbs = house.manager.snapshots
        await verbs.create(record, Operation("snapshot"), name="good", memory=False)
        fail(monkeypatch)
        with pytest.raises(NoSpace):
            await verbs.create(record, Operation("snapshot"), name="bad", memory=False)
        assert house.keeper.sandboxes[record.id]["state"] == "running"
        with pytest.raises(NoSpace):
            await verbs.restore(record, "good", Operation("restore"), start=None)
        assert record.state is State.RUNNING
        assert "kill" not in house.keeper.calls
        directory = house.paths.instance_dir(record.id)
        assert sorted(os.listdir(f"{directory}/snapshots")) == [".current", "good"]
        assert not [name for name in os.listdir(directory) if "restor" in name]


async def test_who_leaves_while_it_is_kept_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        verbs = house.manager.snapshots
        await verbs.create(record, Operation("snapshot"), name="good", memory=False)
        keeping, left, keep = threading.Event(), threading.Event(), SnapshotStore.keep

        def slowly(self: SnapshotStore, snapshot: Snapshot) -> Snapshot:
            keeping.set()
            left.wait(30)
            return keep(self, snapshot)

        monkeypatch.setattr(SnapshotStore, "keep", slowly)
        creating = asyncio.ensure_future(
            verbs.create(record, Operation("snapshot"), name="late", memory=False)
        )
        await asyncio.to_thread(keeping.wait)
        creating.cancel()
        asyncio.get_running_loop().call_later(0.05, left.set)  # a moment after it was told
        with pytest.raises(asyncio.CancelledError):
            await creating
        store = files(house, record)
        assert ([one.name for one in store.list()], store.current()) == (["good"], "good")


async def test_a_restored_one_is_stopped_and_started_again(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        word = Path(house.paths.instance_dir(record.id)) / "upper/word"
        word.write_text("then")
        verbs = house.manager.snapshots
        await verbs.create(record, Operation("snapshot"), name="then", memory=False)
        word.write_text("now")
        await verbs.restore(record, "then", Operation("restore"), start=None)
        assert (record.state, word.read_text()) == (State.RUNNING, "then")
        await verbs.restore(record, "then", Operation("restore"), start=False)
        assert record.state is State.STOPPED
        await verbs.restore(record, "then", Operation("restore"), start=None)
        assert record.state is State.STOPPED, "it did not run, so it is not started"
        await verbs.restore(record, "then", Operation("restore"), start=True)
        assert record.state is State.RUNNING


async def test_one_that_is_removed_by_force_while_it_is_restored_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, lifecycle = await run(house), house.manager.lifecycle
        verbs = house.manager.snapshots
        await verbs.create(record, Operation("snapshot"), name="then", memory=False)
        stop = lifecycle.ask_to_stop

        async def removed_meanwhile(record: Record, timeout_s: float) -> bool:
            record.change(intent="removed")
            return await stop(record, timeout_s)

        monkeypatch.setattr(lifecycle, "ask_to_stop", removed_meanwhile)
        with pytest.raises(NotFound, match="no instance 'web': it was removed"):
            await verbs.restore(record, "then", Operation("restore"), start=None)
        assert os.listdir(house.paths.instances) == []


async def test_of_two_restores_at_once_each_is_true_when_it_returns(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        word = Path(house.paths.instance_dir(record.id)) / "upper/word"
        verbs = house.manager.snapshots
        for name in ("one", "two"):
            word.write_text(name)
            await verbs.create(record, Operation("snapshot"), name=name, memory=False)
        found = {}

        async def restore(name: str) -> None:
            await verbs.restore(record, name, Operation("restore"), start=None)
            found[name] = (word.read_text(), record.state)

        await asyncio.gather(restore("one"), restore("two"))
        assert found == {name: (name, State.RUNNING) for name in ("one", "two")}


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        (State.SUSPENDED, "twofold snapshot create --memory web"),
        (State.PAUSED, "twofold resume web"),
    ],
)
async def test_what_a_machine_has_only_in_memory_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State, hint: str
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        record.change(state=state)
        operation = Operation("snapshot")
        made = await house.manager.snapshots.create(record, operation, name="x", memory=False)
        assert made.consistency == "crash"
        [(message, said)] = operation.warnings
        assert "after a power cut" in message
        assert said.startswith(hint)


async def test_a_paused_container_is_as_consistent_as_one_that_was_frozen_for_it(
    tmp_path: Path,
) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        await house.manager.lifecycle.pause(record)
        operation = Operation("snapshot")
        made = await house.manager.snapshots.create(record, operation, name="x", memory=False)
        assert (made.consistency, operation.warnings) == ("frozen", [])


@pytest.mark.parametrize("start", [None, False])
async def test_one_that_waits_for_its_restart_counts_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bool | None
) -> None:
    monkeypatch.setattr(restart_policy, "delay", lambda *_, **__: 60.0)
    async with FakeHouse(tmp_path) as house:
        record = await run(house, restart="always")
        verbs = house.manager.snapshots
        await verbs.create(record, Operation("snapshot"), name="then", memory=False)
        house.keeper.end(record.id, 1)
        await house.settle()
        pending = record.restart_timer
        assert (record.state, pending is not None) == (State.STOPPED, True)
        await verbs.restore(record, "then", Operation("restore"), start=start)
        await house.settle()
        assert pending is not None
        assert pending.cancelled(), "it would be started by itself"
        wanted = (State.STOPPED, "stopped") if start is False else (State.RUNNING, "running")
        assert (record.state, record.intent) == wanted


async def test_a_restore_that_fails_gives_the_restart_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_policy, "delay", lambda *_, **__: 60.0)
    async with FakeHouse(tmp_path) as house:
        record = await run(house, restart="always")
        verbs = house.manager.snapshots
        await verbs.create(record, Operation("snapshot"), name="then", memory=False)
        house.keeper.end(record.id, 1)
        await house.settle()
        fail(monkeypatch)
        with pytest.raises(NoSpace):
            await verbs.restore(record, "then", Operation("restore"), start=False)
        await house.settle()
        assert record.state is State.RUNNING


async def test_what_is_refused_is_refused_before_anything_stops(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house, auto_remove=True)
        verbs = house.manager.snapshots
        await verbs.create(record, Operation("snapshot"), name="one", memory=False)
        for error, work in (
            (Conflict, verbs.restore(record, "one", Operation("x"), start=None)),
            (Conflict, verbs.create(record, Operation("x"), name="one", memory=False)),
            (Unsupported, verbs.create(record, Operation("x"), name="two", memory=True)),
            (Unsupported, house.manager.suspension.suspend(record, Operation("x"))),
            (IllegalState, house.manager.suspension.discard(record)),
        ):
            with pytest.raises(error) as caught:
                await work
            assert caught.value.hint
        assert record.state is State.RUNNING
        assert "kill" not in house.keeper.calls


@pytest.mark.parametrize("obstacle", ["volumes", "hotplugged"])
async def test_machines_whose_memory_cannot_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        if obstacle == "volumes":
            shares = [{"source": "/tmp", "target": "/data"}]
            record.spec = InstanceSpec.model_validate(
                {**record.spec.model_dump(), "volumes": shares}
            )
        else:
            record.facts["hotplugged"] = ["a disk"]
        with pytest.raises(Unsupported, match="be copied"):
            await house.manager.suspension.suspend(record, Operation("suspend"))
        assert record.state is State.RUNNING


async def test_stop_discard_gives_the_memory_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        sleep(house, record)
        record.change(state=State.SUSPENDED)
        for verb in (
            house.manager.lifecycle.stop(record, Operation("stop")),
            house.manager.restart(record, Operation("restart"), timeout_s=1),
            house.manager.lifecycle.pause(record),
        ):
            with pytest.raises(IllegalState, match="suspended"):
                await verb
        waiting = asyncio.ensure_future(house.manager.wait(record))
        await house.settle()
        assert not waiting.done(), "it has not ended: it sleeps"
        await house.manager.suspension.discard(record)
        assert await waiting == 137
        assert record.state is State.STOPPED
        assert files(house, record).suspended() is None


async def test_memory_that_was_left_in_a_stopped_one_can_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        with pytest.raises(IllegalState):
            await house.manager.suspension.discard(record)
        sleep(house, record)
        os.utime(f"{house.paths.instance_dir(record.id)}/data.img", ns=(1, 1))
        with pytest.raises(TwofoldError, match="written to since") as caught:
            await house.manager.lifecycle.start(record, Operation("start"))
        assert "--discard" in caught.value.hint
        ended_with = record.exit_code
        await house.manager.suspension.discard(record)
        assert (record.state, record.exit_code) == (State.STOPPED, ended_with)
        await house.manager.lifecycle.start(record, Operation("start"))
        assert record.state is State.RUNNING


@pytest.mark.parametrize("before", [State.STOPPED, State.SUSPENDED])
async def test_no_memory_outlives_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: State
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        wall = house.manager.lifecycle.wall(record)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        planned = await wall.plan(
            record,
            await house.images.root(record.image_digest, Operation("x")),
            await house.manager.lifecycle.place(record),
            Operation("x"),
        )
        sleep(house, record)
        record.change(state=before)

        async def plan(*words: Any) -> Any:
            return planned  # as one that wakes up: what is planned is not what is tried here

        monkeypatch.setattr(wall, "plan", plan)
        await house.manager.lifecycle.start(record, Operation("start"))
        assert files(house, record).suspended() is None


async def test_who_leaves_during_a_restore_leaves_files_and_row_that_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        directory = house.paths.instance_dir(record.id)
        store = files(house, record)
        scratch = store.begin("then")
        shutil.copy(f"{directory}/data.img", scratch)
        keep_moment(scratch, scratch, "mind")
        facts = {"created_at": "2026-01-01T00:00:00Z", "comment": "", "consistency": "memory"}
        store.keep(Snapshot(name="then", directory=scratch, **facts))
        placing, commit = threading.Event(), SnapshotStore.commit

        def slowly(self: SnapshotStore) -> None:
            placing.set()
            time.sleep(0.05)
            commit(self)

        monkeypatch.setattr(SnapshotStore, "commit", slowly)
        monkeypatch.setattr("twofold.instance.waking.spec_of", lambda spec, moment: spec)
        restoring = asyncio.ensure_future(
            house.manager.snapshots.restore(record, "then", Operation("restore"), start=False)
        )
        await asyncio.to_thread(placing.wait)
        restoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await restoring
        assert store.suspended() is not None
        assert record.state is State.SUSPENDED


async def test_who_leaves_during_a_suspend_leaves_the_lock_when_it_sleeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        ending, may_end = asyncio.Event(), asyncio.Event()

        async def capture(record: Record, directory: str, **options: Any) -> float:
            keep_moment(directory, house.paths.instance_dir(record.id), "mind")
            return 0.0

        async def put_to_sleep(record: Record) -> None:
            ending.set()
            await may_end.wait()
            record.change(state=State.SUSPENDED)

        monkeypatch.setattr(house.manager.suspension, "capture", capture)
        monkeypatch.setattr(house.manager.lifecycle, "put_to_sleep", put_to_sleep)
        asking = asyncio.ensure_future(
            house.manager.suspension.suspend(record, Operation("suspend"))
        )
        await ending.wait()
        for _ in range(2):  # who is impatient asks twice
            asking.cancel()
            await house.settle()
            assert record.lock.locked(), "another verb would meet a machine that is half asleep"
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert record.state is State.SUSPENDED
        assert not record.lock.locked()


# -- after a death ----------------------------------------------------------------------------


async def test_a_machine_that_stood_still_when_the_daemon_died_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its memory was written, before it was ended: what runs on has another disk."""
    async with FakeHouse(tmp_path) as house:
        record, went_on = await machine(house, monkeypatch)
        sleep(house, record)
        await reborn(house)
        await house.settle()
        assert house.manager.find("web").state is State.RUNNING
        assert went_on == [house.paths.instance_run(record.id)]
        assert files(house, record).suspended() is None


async def test_one_that_the_user_had_paused_stays_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, went_on = await machine(house, monkeypatch)
        await house.manager.lifecycle.pause(record)
        await reborn(house)
        await house.settle()
        assert house.manager.find("web").state is State.PAUSED
        assert went_on == []


async def test_a_container_that_was_frozen_to_be_copied_runs_on(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        house.keeper.sandboxes[record.id]["state"] = "paused"
        await reborn(house)
        await house.settle()
        assert house.keeper.sandboxes[record.id]["state"] == "running"
        assert house.manager.find("web").state is State.RUNNING


@pytest.mark.parametrize("auto_remove", [False, True])
@pytest.mark.parametrize("sandbox", ["running", "ended"])
async def test_a_machine_that_was_just_being_ended_is_ended_and_sleeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: str, auto_remove: bool
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch, auto_remove=auto_remove)
        sleep(house, record)
        house.store.rows[record.id]["state"] = "suspended"
        house.keeper.sandboxes[record.id]["state"] = sandbox
        await reborn(house)
        assert house.manager.find("web").state is State.SUSPENDED
        assert not house.keeper.sandboxes
        assert files(house, record).suspended() is not None


@pytest.mark.parametrize(
    ("state", "fits", "expected"),
    [
        ("suspended", True, State.SUSPENDED),
        ("running", True, State.SUSPENDED),  # the host went down before the row was written
        ("running", False, State.STOPPED),
        ("starting", True, State.SUSPENDED),  # it was to wake up, and never did
        ("stopped", True, State.SUSPENDED),  # a restoring was decided and finished by us
        ("stopped", False, State.STOPPED),
    ],
)
async def test_without_a_sandbox_the_disk_says_whether_it_sleeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, fits: bool, expected: State
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        sleep(house, record)
        house.keeper.sandboxes.clear()
        house.store.rows[record.id]["state"] = state
        if not fits:
            os.utime(f"{house.paths.instance_dir(record.id)}/data.img", ns=(1, 1))
        await reborn(house, same_boot=False)
        assert house.manager.find("web").state is expected
        kept = files(house, record).suspended() is not None
        assert kept == (expected is State.SUSPENDED)


async def test_memory_that_went_away_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        house.keeper.sandboxes.clear()
        house.store.rows[record.id]["state"] = "suspended"
        await reborn(house)
        found = house.manager.find("web")
        assert (found.state, found.error) == (State.STOPPED, "its memory is not there any more")


@pytest.mark.parametrize("state", ["created", "starting", "running"])
async def test_killed_while_it_woke_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        sleep(house, record)
        house.store.rows[record.id]["state"] = "starting"
        house.keeper.sandboxes[record.id]["state"] = state
        await reborn(house)
        found = house.manager.find("web")
        if state != "created":  # its disk may have gone on, so it goes on
            assert found.state is State.RUNNING
            assert files(house, record).suspended() is None
        else:
            assert found.state is State.SUSPENDED
            assert not house.keeper.sandboxes


async def test_a_restoring_that_was_decided_is_finished(tmp_path: Path) -> None:
    async with FakeHouse(tmp_path) as house:
        record = await run(house)
        word = Path(house.paths.instance_dir(record.id)) / "upper/word"
        word.write_text("then")
        await house.manager.snapshots.create(
            record, Operation("snapshot"), name="then", memory=False
        )
        await house.manager.lifecycle.stop(record, Operation("stop"))
        word.write_text("now")
        store = files(house, record)
        store.prepare(store.find("then"), snapshots.copy)
        directory = house.paths.instance_dir(record.id)
        os.rename(f"{directory}/.restore", f"{directory}/restoring")
        shutil.copytree(f"{directory}/upper", f"{directory}/snapshots/.new-half")
        await reborn(house)
        assert word.read_text() == "then"
        assert not [name for name in os.listdir(f"{directory}/snapshots") if ".new" in name]


async def test_a_start_that_cannot_use_the_memory_says_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch)
        await house.manager.lifecycle.stop(record, Operation("stop"))
        sleep(house, record)
        record.change(state=State.SUSPENDED)
        os.utime(f"{house.paths.instance_dir(record.id)}/data.img", ns=(1, 1))
        with pytest.raises(TwofoldError, match="written to since") as caught:
            await house.manager.lifecycle.start(record, Operation("start"))
        assert "--discard" in caught.value.hint
        assert record.state is State.SUSPENDED
        assert os.path.isdir(f"{house.paths.instance_dir(record.id)}/{SUSPENDED}")


@pytest.mark.parametrize("had", [True, False], ids=["with a card", "without"])
async def test_memory_comes_back_with_the_hardware_it_was_kept_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, had: bool
) -> None:
    """A card that was taken out or put in since, a directory of the host: what is restored could
    otherwise not go on, and what ran would be gone."""
    async with FakeHouse(tmp_path) as house:
        record, _ = await machine(house, monkeypatch, network="default" if had else "none")
        network = asdict(record.network) if record.network else None
        store, directory = files(house, record), house.paths.instance_dir(record.id)
        Path(directory, "data.img").write_text("then")
        scratch = store.begin("then")
        shutil.copyfile(f"{directory}/data.img", f"{scratch}/data.img")
        shape = {"vcpus": 1, "memory_bytes": 512 << 20}
        keep_moment(scratch, scratch, "mind", shape=shape, network=network)
        made = {"created_at": "", "comment": "", "consistency": "memory"}
        store.keep(Snapshot(name="then", directory=scratch, **made))
        await house.manager.lifecycle.stop(record, Operation("stop"), timeout_s=0)
        other = plan.Network(
            host_link="x", mac="02:00:00:00:00:99", address="10.9.9.9", prefix=22, gateway=""
        )
        now = {"network": None, "address": None, "mac": None}
        if not had:
            now = {"network": other, "address": other.address, "mac": other.mac}
        spec = record.spec.model_copy(
            update={
                "network": "none" if had else "default",
                "volumes": [Volume(source="/srv", target="/srv")],
            }
        )
        facts = {**record.facts, "hotplugged": ["share /srv"]}
        await house.manager.records.save(record, spec=spec, facts=facts, **now)
        operation = Operation("restore")
        await house.manager.snapshots.restore(record, "then", operation, start=False)
        assert record.state is State.SUSPENDED
        assert record.spec.volumes == []
        assert record.spec.network == ("default" if had else "none")
        assert (record.network is not None) is had
        assert record.address == (record.network.address if record.network else None)
        assert "hotplugged" not in record.facts
        [(message, _)] = operation.warnings
        card = "a network card" if had else "no network card"
        assert message == f"'web' has what it had then: {card}, no directory of the host"
