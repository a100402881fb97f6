"""What is done to instances, with what must hold when somebody died in the middle of it.

Each change can be done again and again to one instance (``worker``): made ready, done, checked.
"""

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import belongings
from lone import Lone, wait_for

from twofold.client.sdk import Box
from twofold.errors import NotFound
from twofold.model.instance import Instance, Volume

NAME, SIZE = "worker", 256 << 20
SCRATCH = re.compile(r"\.(new-|gone-|fork-|removing-|restore$|suspending$)|^restoring$")


class Life:
    """A Twofold with one instance that works, and what can be seen of it."""

    def __init__(self, lone: Lone, tarball: str) -> None:
        self.lone = lone
        self.client = lone.start()
        self.client.import_image(tarball, "alpine")
        self.before = belongings.take(lone.root)

    def run(self, name: str, isolation: str, **more: object) -> Box:
        size = {"memory_bytes": SIZE} if isolation == "vm" else {}
        wanted = {"isolation": isolation, "network": "none", **size, **more}
        return self.client.run_detached("alpine", ["sleep", "10000"], name=name, **wanted)

    def settle(self) -> None:
        """Another daemon where the one before is dead. Who is killed may take a moment to go."""
        assert self.lone.daemon is not None
        if self.lone.daemon.poll() is not None:
            self.client.close()
            self.client = self.lone.start()
        passing = ("starting", "stopping")
        wait_for(lambda: not any(one.state in passing for one in self.instances()), timeout_s=30)

    def instances(self) -> list[Instance]:
        return self.client.instances(everything=True)

    def find(self, name: str) -> Box | None:
        found = [one for one in self.instances() if one.name == name]
        return self.client.instance(name) if found else None

    @property
    def worker(self) -> Box:
        return self.client.instance(NAME)

    def awake(self, name: str = NAME) -> Box:
        """It, running: whatever it does now, it must be usable."""
        box = self.client.instance(name)
        if box.data.state != "running":
            assert not self.processes(box.data.id), f"{name} is {box.data.state}"
            box.start()
        assert sh(box, "echo here") == "here"
        return box

    def processes(self, instance_id: str) -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if f"/{instance_id}\n" in Path(f"/proc/{pid}/cgroup").read_text():
                    found.append(pid)
        return found

    def scratch(self) -> list[str]:
        """What operations that are over have left of their work."""
        top = Path(self.lone.paths.root)
        places = [*top.glob("instances/*"), *top.glob("instances/*/*"), *top.glob("templates/*")]
        places += top.glob("instances/*/snapshots/*")
        return [str(place) for place in places if SCRATCH.search(place.name)]


def sh(box: Box, script: str) -> str:
    done = box.exec(["sh", "-c", script])
    assert done.exit_code == 0, done
    return done.stdout.decode().strip()


def copy_sparse(source: Path, target: Path) -> None:
    """``shutil.copytree`` would write the 16 GiB that a template's disk has not."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


class Change:
    """One operation. ``check`` gets whether it was acknowledged, and leaves it to be done again."""

    isolation = "container"
    may_die = False  # the machine itself was killed, perhaps, and its memory with it

    def begin(self, life: Life) -> None:
        life.run(NAME, self.isolation)

    def ready(self, life: Life) -> None:
        self.say(life, "now")

    def act(self, life: Life) -> None:
        raise NotImplementedError

    def check(self, life: Life, done: bool) -> None:
        raise NotImplementedError

    def say(self, life: Life, word: str) -> None:
        """On the disk twice, and in memory."""
        script = f"echo {word} > /one; echo {word} > /dev/shm/word; echo {word} > /two; sync"
        sh(life.awake(), script)


@dataclass
class Create(Change):
    isolation: str = "container"

    def begin(self, life: Life) -> None:
        if self.isolation == "vm":
            life.run("first", "vm").remove(force=True)  # a template for the others

    def ready(self, life: Life) -> None:
        pass

    def act(self, life: Life) -> None:
        life.run(NAME, self.isolation)

    def check(self, life: Life, done: bool) -> None:
        found = life.find(NAME)
        assert found or not done
        if found is None:
            self.act(life)
        elif done:
            assert found.data.state == "running" or self.may_die
        life.awake().remove(force=True)


@dataclass
class Fork(Change):
    isolation: str = "container"

    def act(self, life: Life) -> None:
        life.worker.fork(count=2)

    def check(self, life: Life, done: bool) -> None:
        for again in (False, True):
            born = [one for one in life.instances() if one.name != NAME]
            assert len(born) == 2 if done or again else len(born) <= 2
            for one in born:
                assert one.state == "running" or self.may_die or not (done or again)
                assert sh(life.awake(one.name), "cat /one /two").split() == ["now", "now"], one
                life.client.instance(one.name).remove(force=True)
            if not again:
                self.say(life, "now")
                self.act(life)


@dataclass
class Keep(Change):
    isolation: str = "container"
    memory: bool = False

    def act(self, life: Life) -> None:
        life.worker.snapshot("kept", memory=self.memory)

    def check(self, life: Life, done: bool) -> None:
        self.say(life, "later")
        kept = [one.name for one in life.worker.snapshots()]
        assert kept == ["kept"] or not (kept or done)
        if not kept:
            self.say(life, "now")
            self.act(life)
            self.say(life, "later")
        life.worker.restore("kept", start=True)
        assert sh(life.awake(), "cat /one /two").split() == ["now", "now"]
        if self.memory:
            assert sh(life.worker, "cat /dev/shm/word") == "now"
        life.worker.remove_snapshot("kept")


@dataclass
class Restore(Change):
    isolation: str = "container"
    memory: bool = False

    def begin(self, life: Life) -> None:
        super().begin(life)
        self.say(life, "then")
        life.worker.snapshot("kept", memory=self.memory)

    def act(self, life: Life) -> None:
        life.worker.restore("kept")

    def check(self, life: Life, done: bool) -> None:
        assert life.worker.data.state == "running" or self.may_die or not done
        for again in (False, True):
            words = sh(life.awake(), "cat /one /two").split()
            assert words == ["then", "then"] or (words == ["now", "now"] and not (done or again))
            if self.memory and words[0] == "then":
                assert sh(life.worker, "cat /dev/shm/word") == "then"
            if not again:
                self.say(life, "now")
                self.act(life)


@dataclass
class Drop(Change):
    """A snapshot with a child, which the files of now descend from as well."""

    isolation: str = "container"
    memory: bool = False

    def ready(self, life: Life) -> None:
        super().ready(life)
        for name in ("parent", "child"):
            if name not in {one.name for one in life.worker.snapshots()}:
                life.worker.snapshot(name, memory=self.memory)

    def act(self, life: Life) -> None:
        life.worker.remove_snapshot("parent")

    def check(self, life: Life, done: bool) -> None:
        found = {one.name: one.parent for one in life.worker.snapshots()}
        assert found in ({"child": None}, {"parent": None, "child": "parent"}) or not done
        assert "child" in found
        if "parent" in found:
            assert not done
            self.act(life)
        life.worker.restore("child")
        assert sh(life.awake(), "cat /one /two").split() == ["now", "now"]
        life.worker.remove_snapshot("child")
        assert life.worker.snapshots() == []


@dataclass
class Sleep(Change):
    isolation: str = "vm"
    then: str = "suspended"

    def act(self, life: Life) -> None:
        life.worker.suspend()

    def check(self, life: Life, done: bool) -> None:
        state = life.worker.data.state
        lost = self.may_die and state == "stopped"
        assert lost or state in ((self.then,) if done else ("running", "suspended"))
        assert sh(life.awake(), "cat /one") == "now"
        assert lost or sh(life.worker, "cat /dev/shm/word") == "now"
        self.ready(life)
        self.act(life)
        assert sh(life.awake(), "cat /dev/shm/word") == "now"


@dataclass
class Wake(Sleep):
    then: str = "running"

    def ready(self, life: Life) -> None:
        super().ready(life)
        life.worker.suspend()

    def act(self, life: Life) -> None:
        life.worker.start()


@dataclass
class Grow(Change):
    isolation: str = "vm"

    def ready(self, life: Life) -> None:
        if (box := life.find(NAME)) is not None:
            box.remove(force=True)
        super().begin(life)

    def begin(self, life: Life) -> None:
        pass

    def act(self, life: Life) -> None:
        life.worker.change(cpus=2.0, memory_bytes=SIZE + (128 << 20))

    def check(self, life: Life, done: bool) -> None:
        for again in (False, True):
            box = life.awake()
            facts, inside = box.refresh().isolation_facts, int(sh(box, "nproc"))
            if done or again:
                assert inside == 2
                assert int(sh(box, "awk '/MemTotal/ { print $2 }' /proc/meminfo")) > 300_000
            told = facts.get("virtual_cpus")
            assert inside <= (told or 1)
            if not again:
                self.act(life)


@dataclass
class Limit(Change):
    """Of a container: what it may use, as it is said and as the kernel has it."""

    limits: tuple[int, int] = (96 << 20, 77)

    def ready(self, life: Life) -> None:
        life.awake().change(memory_bytes=64 << 20, pids=55)

    def act(self, life: Life) -> None:
        life.worker.change(memory_bytes=self.limits[0], pids=self.limits[1])

    def check(self, life: Life, done: bool) -> None:
        wait_for(lambda: self.seen(life) in (self.limits, (64 << 20, 55)), timeout_s=5)
        spec = life.worker.data.spec
        assert (spec.memory_bytes, spec.pids) == self.seen(life)
        assert self.seen(life) == self.limits or not done
        self.act(life)
        assert self.seen(life) == self.limits

    def seen(self, life: Life) -> tuple[int, int]:
        box, found = life.awake(), {}
        for group in belongings.cgroups(life.lone.paths):
            for name in ("memory.limit_in_bytes", "memory.max", "pids.max"):
                path = Path(group, name)
                if group.endswith(f"/{box.data.id}") and path.exists():
                    found[name.split(".")[0]] = int(path.read_text())
        return found["memory"], found["pids"]


@dataclass
class Share(Change):
    """A directory of the host, given to what runs."""

    isolation: str = "container"
    target: str = "/mnt/shared"

    def begin(self, life: Life) -> None:
        super().begin(life)
        self.folder(life).mkdir()
        (self.folder(life) / "word").write_text("shared")

    def folder(self, life: Life) -> Path:
        return life.lone.root.parent / "folder"

    def put(self, life: Life) -> None:
        source = str(self.folder(life))
        life.worker.plug(volume=Volume(source=source, target=self.target))

    def take(self, life: Life) -> None:
        life.worker.unplug(volume=self.target)

    def act(self, life: Life) -> None:
        self.put(life)

    def check(self, life: Life, done: bool) -> None:
        assert self.is_in(life) or not done
        if not self.is_in(life):
            self.put(life)
        self.take(life)
        assert not self.is_in(life)

    def is_in(self, life: Life) -> bool:
        """As the wish says it and as it is inside."""
        box = life.awake()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: "plugging" not in box.refresh().isolation_facts, timeout_s=5)
        if "plugging" in box.refresh().isolation_facts:
            with contextlib.suppress(NotFound):  # who undid it was killed too: the next try does
                self.take(life)
        wished = bool(box.refresh().spec.volumes)
        inside = sh(box, f"cat {self.target}/word 2>/dev/null || true")
        assert inside == ("shared" if wished else ""), f"wished: {wished}, inside: {inside!r}"
        return wished


@dataclass
class Unshare(Share):
    def ready(self, life: Life) -> None:
        super().ready(life)
        if not self.is_in(life):
            self.put(life)

    def act(self, life: Life) -> None:
        self.take(life)

    def check(self, life: Life, done: bool) -> None:
        assert not (done and self.is_in(life))
        if self.is_in(life):
            self.take(life)
        self.ready(life)


@dataclass
class MakeTemplate(Change):
    isolation: str = "vm"

    def begin(self, life: Life) -> None:
        pass

    def ready(self, life: Life) -> None:
        for one in life.client._call("GET", "/v1/templates"):
            life.client._call("DELETE", f"/v1/templates/{one['key']}")

    def act(self, life: Life) -> None:
        life.run(NAME, "vm")

    def check(self, life: Life, done: bool) -> None:
        found = life.find(NAME)
        assert found or not done
        if found is None:
            self.act(life)
        life.awake().remove(force=True)


@dataclass
class DropTemplate(Change):
    isolation: str = "vm"
    key: str = ""

    def begin(self, life: Life) -> None:
        life.run("first", "vm").remove(force=True)
        self.key = life.client._call("GET", "/v1/templates")[0]["key"]
        copy_sparse(self.home(life), self.aside(life))

    def home(self, life: Life) -> Path:
        return life.lone.root / "templates" / self.key

    def aside(self, life: Life) -> Path:
        return life.lone.root.parent / "aside"

    def ready(self, life: Life) -> None:
        if not self.home(life).exists():
            copy_sparse(self.aside(life), self.home(life))

    def act(self, life: Life) -> None:
        life.client._call("DELETE", f"/v1/templates/{self.key}")

    def check(self, life: Life, done: bool) -> None:
        keys = [one["key"] for one in life.client._call("GET", "/v1/templates")]
        assert keys == [self.key] or not keys
        assert not (keys and done)
        if keys:
            life.run(NAME, "vm").remove(force=True)
            self.act(life)
        self.ready(life)
        life.run(NAME, "vm").remove(force=True)


CHANGES: dict[str, Change] = {
    "create-container": Create(),
    "create-vm": Create("vm"),
    "fork-container": Fork(),
    "fork-vm": Fork("vm"),
    "snapshot-container": Keep(),
    "snapshot-vm": Keep("vm"),
    "snapshot-memory": Keep("vm", memory=True),
    "restore-container": Restore(),
    "restore-vm": Restore("vm"),
    "restore-memory": Restore("vm", memory=True),
    "rm-snapshot-container": Drop(),
    "rm-snapshot-memory": Drop("vm", memory=True),
    "suspend": Sleep(),
    "resume": Wake(),
    "set-vm": Grow(),
    "set-container": Limit(),
    "plug-container": Share(),
    "unplug-container": Unshare(),
    "plug-vm": Share("vm"),
    "unplug-vm": Unshare("vm"),
    "template": MakeTemplate(),
    "rm-template": DropTemplate(),
}
