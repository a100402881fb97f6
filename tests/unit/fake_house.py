"""An instance manager among small stand-ins for its neighbours: no root, no kernel, no processes.

``FakeKeeper`` keeps the states a real keeper keeps and refuses what it would refuse. Any call of
any neighbour fails when its name is in ``failing``; ``left`` says what was not given back.
"""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twofold.errors import IllegalState, NotFound, RuntimeFailed, TwofoldError
from twofold.instance.collaborators import Collaborators, MachineParts
from twofold.instance.idrange import Ranges
from twofold.instance.manager import InstanceManager
from twofold.instance.place import ImageRoot
from twofold.instance.record import Record, Records
from twofold.instance.walls import ContainerWall
from twofold.model.image import Image, ImageConfig
from twofold.model.instance import Port
from twofold.model.paths import Paths
from twofold.network.manager import Active
from twofold.network.resolv import ResolvConf
from twofold.operations import Operation, Operations, TaskScope
from twofold.runtime import plan

DIGEST = f"sha256:{'1' * 64}"
IMAGE = Image(
    digest=DIGEST,
    names=["alpine:latest"],
    architecture="amd64",
    created_at="2026-01-01T00:00:00Z",
    size_bytes=1,
    layers=["sha256:l1"],
    config=ImageConfig(cmd=["/bin/sh"], env=["PATH=/bin", "LANG=C"]),
    source="test",
)


class Failing:
    """Names of calls that fail, shared by all neighbours."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def check(self, name: str) -> None:
        if name in self.names:
            raise RuntimeFailed(f"{name} was made to fail")


class FakeStore:
    def __init__(self, failing: Failing) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._failing = failing

    def _done(self) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def insert_instance(self, row: dict[str, Any]) -> "asyncio.Future[None]":
        self._failing.check("insert")
        self.rows[row["id"]] = dict(row)
        return self._done()

    def update_instance(self, instance_id: str, changes: dict[str, Any]) -> "asyncio.Future[None]":
        if instance_id in self.rows:
            self.rows[instance_id].update(changes)
        return self._done()

    def delete_instance(self, instance_id: str) -> "asyncio.Future[None]":
        self.rows.pop(instance_id, None)
        return self._done()


class FakeKeeper:
    """``behaviour`` by the payload's first word: ``brief`` ends at once, ``deaf`` ignores TERM."""

    def __init__(self, failing: Failing) -> None:
        self.sandboxes: dict[str, dict[str, Any]] = {}
        self.plans: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.archived: list[tuple[str, str]] = []
        self.hang_on = ""
        self.hanging = asyncio.Event()
        self._failing = failing
        self.on_event: Any = None

    async def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        self.calls.append(op)
        await asyncio.sleep(0)
        if op == self.hang_on:
            self.hanging.set()
            await asyncio.Event().wait()
        if op in ("create", "start") and op in self._failing.names:
            if op == "start":
                self.end(fields["id"], 1)
            self._failing.check(op)
        self._failing.check(op)
        result: dict[str, Any] = getattr(self, f"_{op}")({**fields, "fds": fds})
        return result

    def _hello(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "instances": [dict(item) for item in self.sandboxes.values()]}

    def _create(self, fields: dict[str, Any]) -> dict[str, Any]:
        made = fields["plan"]
        instance_id = made["instance_id"]
        self.plans[instance_id] = made
        self.sandboxes[instance_id] = {
            "id": instance_id,
            "pid": 4242,
            "state": "created",
            "started_at": "2026-01-01T00:00:00.000Z",
            "exit_code": None,
        }
        return {"ok": True, "pid": 4242, "warnings": []}

    def _start(self, fields: dict[str, Any]) -> dict[str, Any]:
        sandbox = self._get(fields)
        sandbox["state"] = "running"
        if self._word(fields["id"]) == "brief":
            asyncio.get_running_loop().call_soon(self.end, fields["id"], 3)
        return {"ok": True, "warnings": [], "facts": {}}

    def _signal(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._get(fields)
        if self._word(fields["id"]) != "deaf":
            asyncio.get_running_loop().call_soon(self.end, fields["id"], 143)
        return {"ok": True}

    def _kill(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._get(fields)
        asyncio.get_running_loop().call_soon(self.end, fields["id"], 137)
        return {"ok": True}

    def _freeze(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._get(fields)["state"] = "paused"
        return {"ok": True}

    def _thaw(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._get(fields)["state"] = "running"
        return {"ok": True}

    def _archive(self, fields: dict[str, Any]) -> dict[str, Any]:
        """``tar`` comes out of any path; what goes in is thrown away."""
        state = self._get(fields)["state"]
        if state not in ("created", "running"):
            raise IllegalState(f"it is {state}")
        if fields["direction"] == "out":
            os.write(fields["fds"][0], b"tar")
        self.archived.append((fields["direction"], fields["path"]))
        event = {"event": "session_exit", "session": "s9", "exit_code": 0}
        asyncio.get_running_loop().call_soon(self.on_event, event)
        return {"ok": True, "session": "s9"}

    def _update(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._get(fields).setdefault("limits", {}).update(fields["limits"])
        return {"ok": True, "warnings": []}

    def _plan(self, fields: dict[str, Any]) -> dict[str, Any]:
        made = self.plans[fields["id"]]
        limits = self._get(fields).get("limits", {})
        return {"ok": True, "plan": {**made, "cgroup": {**made["cgroup"], **limits}}}

    def _release(self, fields: dict[str, Any]) -> dict[str, Any]:
        sandbox = self.sandboxes.get(fields["id"])
        if sandbox is not None and sandbox["state"] != "ended":
            raise IllegalState("kill it first")
        self.sandboxes.pop(fields["id"], None)
        return {"ok": True}

    def _mount(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._get(fields)
        return {"ok": True}

    def _exec(self, fields: dict[str, Any]) -> dict[str, Any]:
        self._get(fields)
        return {"ok": True, "session": "s1"}

    def _get(self, fields: dict[str, Any]) -> dict[str, Any]:
        sandbox = self.sandboxes.get(fields["id"])
        if sandbox is None:
            raise NotFound("the keeper has no such instance")
        return sandbox

    def _word(self, instance_id: str) -> str:
        return str(self.plans[instance_id]["process"]["argv"][0])

    def end(self, instance_id: str, exit_code: int) -> None:
        """The payload ends, as a keeper would tell it."""
        sandbox = self.sandboxes.get(instance_id)
        if sandbox is None or sandbox["state"] == "ended":
            return
        sandbox |= {"state": "ended", "exit_code": exit_code, "at": "2026-01-01T00:00:01.000Z"}
        if self.on_event is not None:
            self.on_event({"event": "exit", **sandbox})


class FakeNetworks:
    def __init__(self, failing: Failing) -> None:
        self.plugged: set[str] = set()
        self.published: set[str] = set()
        self._failing = failing
        self._last = 1

    async def setup(self) -> None:
        return None

    def allocate(self, used: set[str]) -> plan.Network:
        self._failing.check("allocate")
        self._last += 1
        return plan.Network(
            host_link=f"tf0v{self._last}",
            mac=f"02:00:00:00:00:{self._last:02x}",
            address=f"10.209.0.{self._last}",
            prefix=22,
            gateway="10.209.0.1",
        )

    def is_current(self, network: plan.Network) -> bool:
        return True

    async def open_tap(self, instance_id: str, network: plan.Network, *, vnet_header: bool) -> int:
        self._failing.check("open_tap")
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    async def admit(self, instance_id: str, network: plan.Network) -> None:
        self._failing.check("admit")
        self.plugged.add(instance_id)

    async def plug(self, instance_id: str, kind: str, pid: int, network: plan.Network) -> None:
        self._failing.check("plug")
        self.plugged.add(instance_id)

    async def lease(self, instance_id: str, network: plan.Network, hostname: str) -> None:
        self._failing.check("lease")

    async def publish(self, instance_id: str, address: str, wanted: Iterable[Port]) -> None:
        self._failing.check("publish")
        self.published.add(instance_id)

    async def unplug(self, instance_id: str) -> None:
        self.plugged.discard(instance_id)
        self.published.discard(instance_id)

    async def renew(self) -> None:
        return None

    async def restore(self, active: Iterable[Active]) -> list[str]:
        self.plugged = {item.instance_id for item in active}
        return []

    async def resolver(self) -> ResolvConf:
        self._failing.check("resolver")
        return ResolvConf(content="nameserver 192.0.2.1\n")


class FakeImages:
    def __init__(self, failing: Failing, layer: str) -> None:
        self._failing = failing
        self._layer = layer

    def find(self, name: str) -> Image:
        if name not in ("alpine", DIGEST):
            raise NotFound(f"no image {name!r} here", hint="twofold image list")
        return IMAGE

    async def ensure(self, name: str, operation: Operation) -> Image:
        return self.find(name)

    async def root(self, digest: str, operation: Operation) -> ImageRoot:
        self._failing.check("root")
        return ImageRoot(digest=digest, config=IMAGE.config, layers=(self._layer,))

    async def disk(self, digest: str, operation: Operation) -> str:
        return "/images/erofs/1.erofs"

    async def disk_file(self, digest: str, operation: Operation) -> str:
        return "/images/disks/1.raw"


class FakeMachines:
    def __init__(self) -> None:
        self.errands: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.state = "running"

    async def parts(self, operation: Operation, *, arch: str | None = None) -> MachineParts:
        return MachineParts(
            jail="/cache/jail",
            boot="/kernels/6.1",
            disk="",
            accelerator="tcg",
            accelerator_reason="there is no /dev/kvm",
            kernel="6.1.0",
        )

    async def make_data_disk(self, path: str) -> None:
        Path(path).touch()

    async def pause(self, run_dir: str) -> None:
        return None

    async def resume(self, run_dir: str) -> None:
        return None

    async def status(self, run_dir: str) -> str:
        return self.state

    async def errand(self, run_dir: str, what: str, **words: Any) -> Any:
        self.errands.append((what, words))
        return self.answers.get(what, {})


class UnprivilegedWall(ContainerWall):
    """The same files, owned by whoever runs the tests."""

    async def provision(
        self, record: Record, directory: str, operation: Operation
    ) -> dict[str, Any]:
        self.failing.check("provision")
        os.mkdir(f"{directory}/upper")
        return {}

    failing: Failing


class FakeHouse:
    """``async with FakeHouse(tmp_path) as house: await house.run("sleep")``."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(str(root / "root"))
        self.paths.run = str(root / "run")
        os.makedirs(self.paths.instances, exist_ok=True)
        os.makedirs(f"{self.paths.run}/instances", exist_ok=True)
        self.failing = Failing()
        self.store = FakeStore(self.failing)
        self.keeper = FakeKeeper(self.failing)
        self.networks = FakeNetworks(self.failing)
        self.machines = FakeMachines()
        self.images = FakeImages(self.failing, str(root / "layer"))
        self.scope = TaskScope()
        self.operations = Operations(self.scope)
        self.manager = self._manager()

    def _manager(self) -> InstanceManager:
        rooms = Collaborators(
            paths=self.paths,
            records=Records(self.store),
            keeper=self.keeper,
            images=self.images,
            networks=self.networks,
            machines=self.machines,
            scope=self.scope,
            ranges=Ranges(),
        )
        manager = InstanceManager(rooms)
        wall = UnprivilegedWall(self.keeper)
        wall.failing = self.failing
        manager.walls["container"] = wall
        self.keeper.on_event = manager.on_event
        return manager

    def new_daemon(self) -> InstanceManager:
        """The daemon died: nothing is known but what the store, the disk and the keeper know."""
        self.manager = self._manager()
        return self.manager

    async def __aenter__(self) -> "FakeHouse":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.scope.close()

    def left(self) -> list[str]:
        """Everything that belongs to an instance anywhere."""
        return [
            *(f"row {key}" for key in self.store.rows),
            *(f"sandbox {key}" for key in self.keeper.sandboxes),
            *(f"plug {key}" for key in self.networks.plugged | self.networks.published),
            *(f"directory {key}" for key in os.listdir(self.paths.instances)),
            *(f"record {record.name}" for record in self.manager.records),
        ]

    async def settle(self) -> None:
        """Let everything run that can run without the outside."""
        for _ in range(30):
            await asyncio.sleep(0.002)


__all__ = ["DIGEST", "IMAGE", "FakeHouse", "TwofoldError"]
