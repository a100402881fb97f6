"""Bundles, containers and a leak check for the tests of an OCI runtime.

The runtime is a parameter: ``TWOFOLD_OCI_RUNTIME`` names the program (default: the checkout's
``twofold-oci``). Run against Debian's ``runc`` the same tests show that they can pass and fail.

A ``Lab`` owns a directory, a state root and a cgroup parent, all with its name in them, so that
whatever a runtime leaves behind is found by that name in the kernel's own tables and not by
asking the runtime. ``TWOFOLD_OCI_LAB_IN`` names where the directory is made (default: ``/tmp``).
Root file systems are one static busybox, hard-linked, and its applets.
"""

import contextlib
import copy
import errno
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[2]
BUSYBOX = "/bin/busybox"
ABSENT: Any = object()
"""As a value in ``changes``: the property is taken out."""

ID_BASE = 500_000_000
APPLETS = (
    *("ash", "awk", "cat", "chmod", "chown", "chroot", "chrt", "cut", "dd", "df", "dmesg"),
    *("dnsdomainname", "echo", "env", "false", "find", "free", "grep", "head", "hostname", "id"),
    *("ifconfig", "ionice", "ip", "ipcs", "kill", "ln", "ls", "mkdir", "mkfifo", "mknod", "mount"),
    *("nc", "nice", "nproc", "nsenter", "od", "pidof", "ping", "printf", "ps", "pwd", "readlink"),
    *("renice", "rm", "rmdir", "sed", "seq", "setpriv", "setsid", "sh", "sleep", "sort", "stat"),
    *("stty", "sync", "sysctl", "tail", "taskset", "tee", "test", "time", "timeout", "top"),
    *("touch", "tr", "true", "tty", "umount", "uname", "unlink", "unshare", "usleep", "vi"),
    *("wc", "whoami", "xargs", "yes"),
)
CAPABILITIES = [
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD"),
    *("CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"),
    *("CAP_SYS_CHROOT",),
]
_PRIVATE = ["nosuid", "noexec", "nodev"]
PROC = {"destination": "/proc", "type": "proc", "source": "proc", "options": _PRIVATE}
DEV = {
    "destination": "/dev",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
}
DEVPTS = {
    "destination": "/dev/pts",
    "type": "devpts",
    "source": "devpts",
    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
}
SHM = {
    "destination": "/dev/shm",
    "type": "tmpfs",
    "source": "shm",
    "options": [*_PRIVATE, "mode=1777", "size=65536k"],
}
MQUEUE = {
    "destination": "/dev/mqueue",
    "type": "mqueue",
    "source": "mqueue",
    "options": _PRIVATE,
}
SYS = {
    "destination": "/sys",
    "type": "sysfs",
    "source": "sysfs",
    "options": [*_PRIVATE, "ro"],
}
CGROUP = {
    "destination": "/sys/fs/cgroup",
    "type": "cgroup",
    "source": "cgroup",
    "options": [*_PRIVATE, "relatime", "ro"],
}
NAMESPACES = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
Changes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str


def standard_config() -> dict[str, Any]:
    """What ``runc spec`` writes, with the field's capabilities and no rlimits."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "box",
        "mounts": copy.deepcopy([PROC, DEV, DEVPTS, SHM, MQUEUE, SYS]),
        "linux": {
            "namespaces": [{"type": name} for name in NAMESPACES],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys"],
        },
    }


def change(config: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """Apply ``{"process.user.uid": 5, "mounts+": [{…}], "hostname": ABSENT}`` in place."""
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: Any = config
        for key in parents:
            if isinstance(place, list):
                place = place[int(key)]
            else:
                if not isinstance(place.get(key), (dict, list)):
                    place[key] = {}
                place = place[key]
        if last.endswith("+"):
            place.setdefault(last[:-1], []).extend(copy.deepcopy(value))
        elif value is ABSENT:
            place.pop(last, None)
        elif isinstance(place, list):
            place[int(last)] = copy.deepcopy(value)
        else:
            place[last] = copy.deepcopy(value)
    return config


def user_namespace(*, size: int = 65536, base: int = ID_BASE) -> dict[str, Any]:
    """Changes that give a container its own ids; its bundle needs ``Lab.give``."""
    mapping = [{"containerID": 0, "hostID": base, "size": size}]
    return {
        "linux.namespaces+": [{"type": "user"}],
        "linux.uidMappings": mapping,
        "linux.gidMappings": mapping,
    }


def tmpfs(target: str, *options: str) -> dict[str, Any]:
    return {
        "destination": target,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": list(options),
    }


def bind(source: Path | str, target: str, *options: str) -> dict[str, Any]:
    return {
        "destination": target,
        "type": "none",
        "source": str(source),
        "options": list(options or ("rbind",)),
    }


def find_runtime() -> str:
    given = os.environ.get("TWOFOLD_OCI_RUNTIME", "")
    if given:
        return shutil.which(given) or given
    return str(CLONE / ".venv/bin/twofold-oci")


class Container:
    """One container by its id. Its stdio are files, since whoever creates it does not stay."""

    def __init__(self, lab: "Lab", name: str, bundle: Path) -> None:
        self.lab, self.name, self.bundle = lab, name, bundle

    def create(self, *flags: str, check: bool = True, **options: Any) -> Outcome:
        words = ("create", "--bundle", str(self.bundle), *flags, self.name)
        self.lab.containers.append(self)
        return self.lab.call(*words, streams=self.bundle, check=check, **options)

    def start(self, *, check: bool = True) -> Outcome:
        return self.lab.call("start", self.name, check=check)

    def run(self, *flags: str, check: bool = True) -> Outcome:
        """``run --detach``."""
        self.lab.containers.append(self)
        words = ("run", "--detach", "--bundle", str(self.bundle), *flags, self.name)
        return self.lab.call(*words, streams=self.bundle, check=check)

    def exec(self, script: str, *flags: str, check: bool = True, **options: Any) -> Outcome:
        words = ("exec", *flags, self.name, "/bin/sh", "-c", script)
        return self.lab.call(*words, check=check, **options)

    def kill(self, which: str = "KILL", *flags: str, check: bool = True) -> Outcome:
        return self.lab.call("kill", *flags, self.name, which, check=check)

    def delete(self, *flags: str, check: bool = True) -> Outcome:
        done = self.lab.call("delete", *flags, self.name, check=check)
        if done.code == 0 and self in self.lab.containers:
            self.lab.containers.remove(self)
        return done

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.lab.call("state", self.name).out))

    def pid(self) -> int:
        return int(self.state()["pid"])

    def wait(self, *, timeout_s: float = 20) -> None:
        """Return when the first process is gone and the runtime says so."""
        pid = int(self.state().get("pid") or 0)
        if pid:
            await_exit(pid, timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        while self.state()["status"] != "stopped":
            assert time.monotonic() < deadline, f"not stopped: {self.state()}"
            time.sleep(0.02)  # the runtime reads /proc; no event tells of that

    def await_output(self, text: str = "ready", *, timeout_s: float = 20) -> str:
        deadline = time.monotonic() + timeout_s
        while text not in self.out():
            assert time.monotonic() < deadline, f"no {text!r} in {self.out()!r} {self.err()!r}"
            time.sleep(0.01)  # a file has no readiness to wait for
        return self.out()

    def out(self) -> str:
        return (self.bundle / "stdout").read_text(errors="surrogateescape")

    def err(self) -> str:
        return (self.bundle / "stderr").read_text(errors="surrogateescape")

    @contextlib.contextmanager
    def life(self, *flags: str) -> Iterator["Container"]:
        """Created, started, and deleted by force at the end."""
        self.create(*flags)
        try:
            self.start()
            yield self
        finally:
            self.delete("--force")


class Lab:
    """See the module. ``run`` and ``refused`` are what most tests need."""

    def __init__(self, home: Path, runtime: str) -> None:
        self.home, self.runtime = home, runtime
        self.token = home.name
        self.root = home / "state"
        self.containers: list[Container] = []
        self._count = 0
        self.template = home / "template"
        _busybox_tree(self.template)

    @property
    def is_runc(self) -> bool:
        return os.path.basename(self.runtime).startswith("runc")

    # Bundles

    def bundle(self, changes: Changes | None = None, *, script: str | None = None) -> Path:
        """A new bundle: root file system and config.json with ``changes`` applied."""
        self._count += 1
        path = self.home / f"b{self._count}"
        path.mkdir()
        self.rootfs(path / "rootfs")
        config = standard_config()
        config["linux"]["cgroupsPath"] = f"/{self.token}/{self.name_of(path)}"
        if script is not None:
            config["process"]["args"] = ["/bin/sh", "-c", script]
        self.write(path, change(config, changes or {}))
        return path

    def rootfs(self, target: Path, *, link: bool = True) -> None:
        """Directories and links of its own; only the busybox is shared, by a hard link."""
        for directory in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (target / directory).mkdir(parents=True)
        os.chmod(target / "tmp", 0o1777)
        put = os.link if link else shutil.copy
        put(self.template / "bin/busybox", target / "bin/busybox")
        for applet in APPLETS:
            os.symlink("busybox", target / "bin" / applet)

    def write(self, bundle: Path, config: Any) -> None:
        text = config if isinstance(config, str) else json.dumps(config)
        (bundle / "config.json").write_text(text)

    def read(self, bundle: Path) -> dict[str, Any]:
        return dict(json.loads((bundle / "config.json").read_text()))

    def give(self, bundle: Path, *, base: int = ID_BASE) -> Path:
        """Make the root file system belong to the root of a user namespace."""
        for directory, names, files in os.walk(bundle / "rootfs"):
            os.chown(directory, base, base)
            for name in (*names, *files):
                os.lchown(os.path.join(directory, name), base, base)
        return bundle

    def name_of(self, bundle: Path) -> str:
        return f"{self.token}-{bundle.name}"

    def container(
        self, changes: Changes | None = None, *, script: str = "echo ready; exec sleep 60"
    ) -> Container:
        bundle = self.bundle(changes, script=script)
        return Container(self, self.name_of(bundle), bundle)

    # Calls

    def command(self, *words: str, flags: Sequence[str] = ()) -> list[str]:
        return [self.runtime, "--root", str(self.root), *flags, *words]

    def call(
        self,
        *words: str,
        flags: Sequence[str] = (),
        streams: Path | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        prefix: Sequence[str] = (),
        cwd: Path | None = None,
        timeout_s: float = 60,
        check: bool = True,
    ) -> Outcome:
        """One whole process of the runtime, its output in files below ``streams``."""
        directory = streams or self.home
        suffix = "" if streams else f".{secrets.token_hex(4)}"
        paths = [directory / f"stdout{suffix}", directory / f"stderr{suffix}"]
        with (
            open(paths[0], "wb") as out,
            open(paths[1], "wb") as err,
            open(directory / f"stdin{secrets.token_hex(4)}", "w+b") as given,
        ):
            os.unlink(given.name)
            given.write(stdin)
            given.seek(0)
            process = subprocess.Popen(
                [*prefix, *self.command(*words, flags=flags)],
                stdin=given,
                stdout=out,
                stderr=err,
                env={**os.environ, "TWOFOLD_OCI_LAB": self.token, **(env or {})},
                pass_fds=pass_fds,
                cwd=cwd,
            )
            try:
                code = _wait(process, timeout_s=timeout_s)
            except BaseException:
                process.kill()
                process.wait()
                raise
        texts = [path.read_text(errors="surrogateescape") for path in paths]
        if streams is None:
            for path in paths:
                path.unlink()
        outcome = Outcome(code=code, out=texts[0], err=texts[1])
        if check and code != 0:
            raise AssertionError(f"{' '.join(words)} exited with {code}\n{texts[0]}{texts[1]}")
        return outcome

    def run(
        self,
        script: str,
        changes: Changes | None = None,
        *,
        prepare: Callable[[Path], object] = lambda bundle: None,
        check: bool = True,
        words: Sequence[str] = (),
        **options: Any,
    ) -> Outcome:
        """``run`` a shell script in a container of its own; the payload's words and exit code."""
        bundle = self.bundle(changes, script=script)
        prepare(bundle)
        done = self.call(
            *("run", "--bundle", str(bundle), *words, self.name_of(bundle)), check=check, **options
        )
        shutil.rmtree(bundle, ignore_errors=True)
        return done

    def output(self, script: str, changes: Changes | None = None, **options: Any) -> str:
        """What the script printed, without surrounding white space."""
        return self.run(script, changes, **options).out.strip()

    def refused(
        self,
        changes: Changes | None,
        *words: str,
        prepare: Callable[[Path], object] = lambda bundle: None,
        runc_too: bool = True,
    ) -> str:
        """The bundle is refused, the message holds ``words``, the payload did not run, no leak.

        The wording is ours: of runc only the refusal is asked.
        """
        before = self.inventory()
        bundle = self.bundle(changes, script=None)
        config = self.read(bundle)
        if isinstance(config.get("process"), dict) and (changes or {}).get("process.args") is None:
            config["process"]["args"] = ["/bin/sh", "-c", "echo the-payload-ran"]
            self.write(bundle, config)
        prepare(bundle)
        return self.refused_bundle(bundle, *words, before=before)

    def refused_bundle(
        self, bundle: Path, *words: str, before: frozenset[str] | None = None
    ) -> str:
        before = self.inventory() if before is None else before
        name = self.name_of(bundle)
        done = self.call("run", "--bundle", str(bundle), name, check=False, timeout_s=30)
        assert "the-payload-ran" not in done.out, done
        assert done.code != 0, done
        assert done.err.strip(), "refused without a word"
        assert "Traceback" not in done.err, done.err
        if not self.is_runc:
            missing = [word for word in words if word not in done.err]
            assert not missing, f"{missing} not in {done.err!r}"
        self.assert_nothing_new(before)
        shutil.rmtree(bundle, ignore_errors=True)
        return done.err

    # Cgroups

    @property
    def unified(self) -> bool:
        return os.path.exists("/sys/fs/cgroup/cgroup.controllers")

    def controller_present(self, name: str) -> bool:
        if self.unified:
            text = Path("/sys/fs/cgroup/cgroup.controllers").read_text()
            return name in text.split()
        return os.path.isdir(f"/sys/fs/cgroup/{name}")

    def knob(self, v1: str, v2: str = "") -> str:
        """The path of a cgroup file as the container sees it, with ``CGROUP`` mounted."""
        if self.unified:
            return f"/sys/fs/cgroup/{v2 or v1.split('/', 1)[1]}"
        return f"/sys/fs/cgroup/{v1}"

    # What belongs to this lab on the machine

    def inventory(self) -> frozenset[str]:
        found = [f"mount {path}" for path in self._mounts()]
        found += [f"cgroup {path}" for path in self._cgroups()]
        found += [f"process {pid}" for pid in self.processes()]
        with contextlib.suppress(FileNotFoundError):
            found += [f"state {name}" for name in os.listdir(self.root)]
        for place in ("/tmp", "/run", "/dev/shm", "/run/twofold-oci", "/dev/mqueue"):
            with contextlib.suppress(OSError):
                found += [f"file {place}/{n}" for n in os.listdir(place) if f"{self.token}-" in n]
        return frozenset(found)

    def assert_nothing_new(self, before: frozenset[str], *, timeout_s: float = 5) -> None:
        deadline = time.monotonic() + timeout_s
        while new := self.inventory() - before:
            assert time.monotonic() < deadline, "left behind:\n" + "\n".join(sorted(new))
            time.sleep(0.02)  # the kernel tears down namespaces and cgroups when it pleases

    def processes(self) -> list[int]:
        return [int(n) for n in os.listdir("/proc") if n.isdigit() and self._ours(n)]

    def _ours(self, pid: str) -> bool:
        if int(pid) == os.getpid():
            return False
        if self.token in _read(f"/proc/{pid}/cgroup"):
            return not _waits_for_init(pid)
        return f"TWOFOLD_OCI_LAB={self.token}" in _read(f"/proc/{pid}/environ").split("\0")

    def _mounts(self) -> list[str]:
        lines = _read("/proc/self/mountinfo").splitlines()
        return [line.split(" ")[4] for line in lines if f"{self.home}/" in line]

    def _cgroups(self) -> list[str]:
        found = []
        for top in cgroup_mounts():
            for directory, names, _ in os.walk(top):
                found += [f"{directory}/{name}" for name in names if self._named(name, directory)]
        return found

    def _named(self, name: str, parent: str) -> bool:
        # The lab's own parent cgroup stays until the end, as any engine's does.
        return self.token in f"{parent}/{name}" and name != self.token

    def close(self) -> None:
        """Everything of this lab goes, whatever state a failing test left it in."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.root):
                self.call("delete", "--force", name, check=False)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in reversed(self._mounts()):
            subprocess.run(["umount", "-l", path], check=False, capture_output=True)
        deadline = time.monotonic() + 5
        while self._remove_cgroups() and time.monotonic() < deadline:
            time.sleep(0.05)  # a killed process leaves its cgroup a little later
        shutil.rmtree(self.home, ignore_errors=True)

    def _remove_cgroups(self) -> list[str]:
        for top in cgroup_mounts():
            for directory, _, _ in os.walk(top, topdown=False):
                if self.token in directory:
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
        return self._cgroups()


def cgroup_mounts() -> list[str]:
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if fields[fields.index("-") + 1] in ("cgroup", "cgroup2"):
            found.append(fields[4])
    return found


def open_lab() -> Lab:
    home = Path(os.environ.get("TWOFOLD_OCI_LAB_IN", "/tmp")) / f"oci-lab-{secrets.token_hex(4)}"
    home.mkdir(mode=0o711)
    return Lab(home, find_runtime())


def await_exit(pid: int, *, timeout_s: float = 20) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        if error.errno == errno.EINVAL:  # a zombie whose thread group is being reaped
            return
        raise
    try:
        assert select.select([descriptor], [], [], timeout_s)[0], f"process {pid} did not end"
    finally:
        os.close(descriptor)


def _wait(process: "subprocess.Popen[bytes]", *, timeout_s: float) -> int:
    # Popen's own wait with a time-out polls in steps of up to 50 ms.
    descriptor = os.pidfd_open(process.pid)
    try:
        if not select.select([descriptor], [], [], timeout_s)[0]:
            raise AssertionError(f"{process.args!r} still runs after {timeout_s} s")
    finally:
        os.close(descriptor)
    return process.wait()


def _busybox_tree(target: Path) -> None:
    (target / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, target / "bin/busybox")
    os.chmod(target / "bin/busybox", 0o755)


def _waits_for_init(pid: str) -> bool:
    """Dead, and no runtime's any more: how soon PID 1 reaps is not what is tested."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return not fields or (fields[0] == "Z" and fields[1] == "1")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""
