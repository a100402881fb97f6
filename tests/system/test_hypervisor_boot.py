"""The jailed QEMU itself: what it takes to boot, and what it is refused. No monitor, no keeper."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from twofold.guest import protocol
from twofold.hypervisor import jail, kernel, machine
from twofold.hypervisor.kernel import KernelBundle
from twofold.model.progress import silent
from twofold.storage.disk import data_disk

UNPRIVILEGED = 54321
READY_TIMEOUT_S = 120.0


@pytest.fixture(scope="session")
def bundle(twofold_root: str) -> KernelBundle:
    return kernel.ensure(f"{twofold_root}/kernels", silent)


@pytest.fixture(scope="session")
def qemu_root(twofold_root: str) -> str:
    return jail.ensure(f"{twofold_root}/cache", silent)


@pytest.fixture(scope="module")
def empty_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing in it: the agent says hello before it looks inside."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "root/etc").mkdir(parents=True)
    argv = ["mkfs.erofs", str(folder / "image.erofs"), str(folder / "root")]
    subprocess.run(argv, check=True, capture_output=True)
    return folder / "image.erofs"


@contextmanager
def mounted(source: str, target: str) -> Iterator[None]:
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


class Booted:
    def __init__(self, process: subprocess.Popen[bytes], agent: socket.socket) -> None:
        self.process, self._agent = process, agent

    def hello(self) -> dict[str, object]:
        """What the agent says of itself, or a failed test."""
        parser = protocol.Parser(synchronise=True)
        self._agent.settimeout(READY_TIMEOUT_S)
        while data := self._agent.recv(65536):
            for kind, _, body in parser.feed(data):
                assert kind == protocol.HELLO
                return protocol.decode_json(bytes(body))
        raise AssertionError("QEMU ended before the agent said hello")

    def status(self, field: str) -> str:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{field}:\s*(.*)$", text, re.MULTILINE)
        assert found
        return found.group(1)


@contextmanager
def boot(spec: machine.MachineSpec, bundle: KernelBundle, root: str) -> Iterator[Booted]:
    """The command line as built, in the jail, as nobody in particular."""
    built = machine.build(spec)
    with ExitStack() as stack:
        stack.enter_context(mounted(bundle.directory, f"{root}/boot"))
        Path(f"{root}/dev/null").touch()
        stack.enter_context(mounted("/dev/null", f"{root}/dev/null"))
        fds = {}
        for file in built.open_files:
            fds[file.name] = os.open(file.path, os.O_RDWR if file.access == "rw" else os.O_RDONLY)
            stack.callback(os.close, fds[file.name])
        agent, agent_theirs = socket.socketpair()
        serial, serial_theirs = socket.socketpair()
        inner, inner_theirs = socket.socketpair()
        qmp = socket.socket(socket.AF_UNIX)
        qmp.bind("")  # an abstract name of the kernel's choice
        qmp.listen(1)
        for sock in (agent, agent_theirs, serial, serial_theirs, inner, inner_theirs, qmp):
            stack.enter_context(sock)
        fds |= {
            "agent": agent_theirs.fileno(),
            "serial": serial_theirs.fileno(),
            "inner": inner_theirs.fileno(),
            "qmp": qmp.fileno(),
        }
        argv = [re.sub(r"\{fd:(\w+)\}", lambda m: str(fds[m[1]]), word) for word in built.argv]

        def confine() -> None:
            os.chroot(root)
            os.chdir("/")
            os.setgroups([])
            os.setgid(UNPRIVILEGED)
            os.setuid(UNPRIVILEGED)

        process = subprocess.Popen(argv, pass_fds=tuple(fds.values()), preexec_fn=confine)
        agent_theirs.close()
        try:
            yield Booted(process, agent)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def spec(empty_image: Path, tmp_path: Path) -> machine.MachineSpec:
    data_disk(str(tmp_path / "data.img"), 256 << 20, str(tmp_path / "cache"))
    return machine.MachineSpec(
        instance_id="jailed",
        hardware="virtio",
        accelerator="tcg",
        vcpus=1,
        memory_bytes=machine.MINIMUM_MEMORY_BYTES,
        root_disk=str(empty_image),
        data_disk=str(tmp_path / "data.img"),
    )


@pytest.mark.slow
def test_a_nested_guest_boots_with_its_least_memory(
    spec: machine.MachineSpec, bundle: KernelBundle, qemu_root: str
) -> None:
    memory_bytes = machine.MINIMUM_NESTED_BYTES
    nested = replace(spec, hardware="emulated", nested=True, memory_bytes=memory_bytes)
    with boot(nested, bundle, qemu_root) as booted:
        assert booted.hello()["modules_failed"] == []


@pytest.mark.parametrize("hardware", ["virtio", "emulated"])
def test_the_agent_answers_from_a_jailed_unprivileged_qemu(
    hardware: str, spec: machine.MachineSpec, bundle: KernelBundle, qemu_root: str
) -> None:
    """With the least memory that is accepted, so that the limit is known to be enough."""
    with boot(replace(spec, hardware=hardware), bundle, qemu_root) as booted:
        facts = booted.hello()
        assert facts["kernel"] == bundle.release
        assert facts["modules_failed"] == []
        assert booted.status("Uid").split() == [str(UNPRIVILEGED)] * 4
        assert booted.status("CapEff") == "0000000000000000"
        assert booted.status("Seccomp") == "2"
        assert booted.status("NoNewPrivs") == "1"


def test_the_jail_holds_no_way_to_run_another_program(qemu_root: str) -> None:
    programs = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(qemu_root)
        for name in names
        if "bin" in folder.split("/")[-1]
    ]
    its_own = {"qemu-system-x86_64", "diod", "swtpm"}
    assert {os.path.basename(path) for path in programs} <= its_own


def test_a_jail_is_made_once(qemu_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    assert jail.ensure(os.path.dirname(qemu_root), silent) == qemu_root
