"""``linux.devices``, what stands in /dev unasked, terminals, and the three descriptors."""

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oci_lab import Lab
from oci_spec import beyond_runc, proves, refutes

FIELDS = ("type", "path", "major", "minor", "fileMode", "uid", "gid")
ALL = tuple(f"linux.devices[].{name}" for name in FIELDS)
ZERO = {"type": "c", "path": "/dev/mine", "major": 1, "minor": 5, "fileMode": 0o640}


# ------------------------------------------------------------------- devices that were asked for


@proves(*ALL)
def test_devices(oci: Lab) -> None:
    devices = [
        {**ZERO, "uid": 7, "gid": 8},
        {**ZERO, "path": "/other/place/full", "minor": 7, "fileMode": 0o666},
        {"type": "b", "path": "/dev/loop99", "major": 7, "minor": 99, "fileMode": 0o600},
        {"type": "u", "path": "/dev/unbuffered", "major": 1, "minor": 3},
        {"type": "p", "path": "/dev/fifo", "fileMode": 0o622},
    ]
    form = "stat -c '%F %t:%T %a %u:%g'"
    said = oci.output(f"cd /dev; {form} mine /other/place/full loop99", {"linux.devices": devices})
    assert said.splitlines() == [
        "character special file 1:5 640 7:8",
        "character special file 1:7 666 0:0",
        "block special file 7:63 600 0:0",
    ]
    said = oci.output(
        "head -c 3 /dev/mine | wc -c; test -c /dev/unbuffered && test -p /dev/fifo && echo both; "
        "stat -c %a /dev/fifo",
        {
            "linux.devices": devices,
            "linux.resources.devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
            ],
        },
    )
    assert said.split() == ["3", "both", "622"]


@refutes(*ALL)
def test_without_devices_there_are_none(oci: Lab) -> None:
    assert oci.output("ls /dev/mine /dev/loop99 2>/dev/null; true") == ""


@refutes(*ALL)
@pytest.mark.parametrize(
    ("device", "word"),
    [
        ({**ZERO, "type": "x"}, "type"),
        ({**ZERO, "type": ""}, "type"),
        ({key: value for key, value in ZERO.items() if key != "path"}, "path"),
        ({**ZERO, "path": "relative"}, "path"),
        ({**ZERO, "major": -1}, "major"),
        ({**ZERO, "minor": "5"}, "minor"),
        ({"type": "c", "path": "/dev/mine"}, "major"),
        ({**ZERO, "fileMode": -1}, "fileMode"),
        ({**ZERO, "fileMode": "0640"}, "fileMode"),
        ({**ZERO, "uid": -1}, "uid"),
        ({**ZERO, "gid": 1 << 32}, "gid"),
    ],
)
@beyond_runc("takes relative paths, empty types and no numbers")
def test_devices_that_are_none_are_refused(oci: Lab, device: dict[str, Any], word: str) -> None:
    oci.refused({"linux.devices": [device]}, f"linux.devices[0].{word}")


@refutes("linux.devices[].path")
@beyond_runc("leaves the file that is there")
def test_a_file_that_is_there_is_refused(oci: Lab) -> None:
    """Unless it is the very device."""

    def prepare(bundle: Path) -> None:
        (bundle / "rootfs/opt").mkdir()
        (bundle / "rootfs/opt/mine").write_text("not a device")
        os.mknod(bundle / "rootfs/opt/zero", 0o020666, os.makedev(1, 5))

    changes = {"linux.devices": [{**ZERO, "path": "/opt/mine"}]}
    oci.refused(changes, "linux.devices[0]", "/opt/mine", prepare=prepare)
    changes = {"linux.devices": [{**ZERO, "path": "/opt/zero"}]}
    assert oci.output("test -c /opt/zero && echo fine", changes, prepare=prepare) == "fine"


# ------------------------------------------------------------------- devices that are always there


@proves("default devices", "/dev/ptmx")
def test_default_devices(oci: Lab) -> None:
    numbers = {"null": "1:3", "zero": "1:5", "full": "1:7", "random": "1:8", "urandom": "1:9"}
    numbers["tty"] = "5:0"
    names = " ".join(numbers)
    said = oci.output(f"cd /dev; stat -c '%n %F %t:%T %a' {names}; readlink ptmx").splitlines()
    for line, (name, number) in zip(said, numbers.items(), strict=False):
        assert line == f"{name} character special file {number} 666"
    assert said[-1].removeprefix("/dev/") == "pts/ptmx" or "ptmx" in said[-1]


@proves("default devices")
@refutes("default devices")
def test_default_devices_work_and_no_others_are_there(oci: Lab) -> None:
    probe = "head -c 4 /dev/urandom | wc -c; echo x >/dev/null && echo ok; ls /dev"
    said = oci.output(probe).split()
    assert said[:2] == ["4", "ok"]
    links = {"fd", "stdin", "stdout", "stderr", "core"}
    devices = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
    assert set(said[2:]) <= links | devices | {"pts", "shm", "mqueue"}


@refutes("/dev/ptmx")
def test_ptmx_is_the_containers_own(oci: Lab) -> None:
    """A new terminal has number 0, although the host has some: the instance is a new one."""
    master, slave = os.openpty()
    try:
        program = "exec 3<>/dev/ptmx; ls /dev/pts"
        assert oci.output(program).split() == ["0", "ptmx"]
    finally:
        os.close(master)
        os.close(slave)


@proves("/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr")
def test_links(oci: Lab) -> None:
    said = oci.output(
        "for n in fd stdin stdout stderr; do readlink /dev/$n; done; echo out >> /dev/stdout"
    )
    assert said.split() == [
        "/proc/self/fd",
        *(f"/proc/self/fd/{number}" for number in range(3)),
        "out",
    ]


@beyond_runc("needs proc")
@refutes("/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr")
def test_no_links_without_proc(oci: Lab) -> None:
    """What they lead to is made by mounting proc; and a file of the image stays what it is."""

    def prepare(bundle: Path) -> None:
        (bundle / "rootfs/dev/stdin").write_text("image")

    changes = {"mounts": [], "linux.maskedPaths": [], "linux.readonlyPaths": []}
    said = oci.output(
        "cat /dev/stdin; readlink /dev/stdout; echo", changes, prepare=prepare, check=False
    )
    assert said.startswith("image")


# ------------------------------------------------------------------- descriptors


@proves("file descriptors")
@refutes("--preserve-fds")
def test_only_three_descriptors(oci: Lab) -> None:
    """Yardstick O4: also when the runtime itself was started with more, on the host's root."""
    held = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(5)]
    try:
        said = oci.output("exec ls /proc/self/fd", pass_fds=held)
        assert set(said.split()) - {"3"} == {"0", "1", "2"}  # 3 is ls reading the directory
        container = oci.container()
        with container.life():
            said = container.exec("exec ls /proc/self/fd", pass_fds=held).out
            assert set(said.split()) - {"3"} == {"0", "1", "2"}
            said = container.exec("ls -l /proc/1/fd", pass_fds=held).out
            assert "-> /\n" not in said
    finally:
        for descriptor in held:
            os.close(descriptor)


@refutes("file descriptors")
@proves("--preserve-fds")
def test_more_descriptors_when_asked_for(oci: Lab) -> None:
    """``--preserve-fds N`` passes 3 to 2+N."""
    descriptors = []
    for text in (b"three", b"four"):
        descriptor = os.memfd_create("given")
        os.write(descriptor, text)
        os.lseek(descriptor, 0, os.SEEK_SET)
        descriptors.append(descriptor)
    numbers = (60, 61)
    for descriptor, number in zip(descriptors, numbers, strict=True):
        os.dup2(descriptor, number)
    # The runtime gets them as 3 and 4: a shell puts them there.
    shift = ["bash", "-c", 'exec 3<&60 4<&61 60<&- 61<&-; exec "$@"', "sh"]
    try:
        said = oci.output(
            "cat <&3; cat <&4; ls /proc/self/fd",
            words=("--preserve-fds", "2"),
            prefix=shift,
            pass_fds=numbers,
        )
        assert said.startswith("threefour")
        assert "60" not in said
    finally:
        for descriptor in (*descriptors, *numbers):
            os.close(descriptor)


# ------------------------------------------------------------------- terminals


@contextlib.contextmanager
def console_socket(oci: Lab) -> Iterator[tuple[str, socket.socket]]:
    path = str(oci.home / "console.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        listening.settimeout(20)
        try:
            yield path, listening
        finally:
            os.unlink(path)


def receive_master(listening: socket.socket) -> tuple[int, str]:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(20)
        data, controls, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4 * 4))
    descriptors = array.array("i", controls[0][2])
    assert len(descriptors) == 1
    return descriptors[0], data.decode()


def read_terminal(master: int, until: str, *, timeout_s: float = 20) -> str:
    said = ""
    while until not in said:
        assert select.select([master], [], [], timeout_s)[0], f"only {said!r}"
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        said += piece.decode()
    return said


@proves("process.terminal", "process.consoleSize", "/dev/console", "--console-socket")
def test_a_terminal(oci: Lab) -> None:
    probe = "stty size; tty; test -c /dev/console && echo console; echo to-console > /dev/console; "
    probe += "read line; echo got $line"
    changes = {"process.terminal": True, "process.consoleSize": {"height": 31, "width": 97}}
    container = oci.container(changes, script=probe)
    with console_socket(oci) as (path, listening):
        container.create("--console-socket", path)
        master, name = receive_master(listening)
        assert name
        try:
            container.start()
            said = read_terminal(master, "to-console")
            assert said.splitlines()[:3] == ["31 97", "/dev/pts/0", "console"]
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
            os.write(master, b"hello\n")
            assert "got hello" in read_terminal(master, "got hello")
        finally:
            os.close(master)
    container.delete("--force")


@refutes("process.terminal", "process.consoleSize", "/dev/console")
def test_without_a_terminal(oci: Lab) -> None:
    probe = "tty; test -e /dev/console && echo console; stty size 2>&1 | head -n 1"
    size = {"height": 31, "width": 97}
    for changes in ({}, {"process.consoleSize": size}):
        said = oci.output(probe, changes, check=False)
        assert said.startswith("not a tty")
        assert "console" not in said
        assert "31 97" not in said


@refutes("process.terminal", "process.consoleSize")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"process.terminal": "yes"}, "process.terminal"),
        ({"process.terminal": True, "process.consoleSize": {"height": 3}}, "consoleSize.width"),
        (
            {"process.terminal": True, "process.consoleSize": {"height": -1, "width": 5}},
            "process.consoleSize.height",
        ),
    ],
)
def test_terminals_that_are_none_are_refused(oci: Lab, changes: dict[str, Any], word: str) -> None:
    if oci.is_runc and "consoleSize.width" in word:
        pytest.skip("runc: takes it for 0")
    with console_socket(oci) as (path, _):
        bundle = oci.bundle(changes, script="echo the-payload-ran")
        before = oci.inventory()
        name = oci.name_of(bundle)
        words = ("create", "--bundle", str(bundle), "--console-socket", path, name)
        done = oci.call(*words, check=False)
        assert done.code != 0
        if not oci.is_runc:
            assert word in done.err
        oci.assert_nothing_new(before)


@refutes("--console-socket")
def test_create_wants_a_socket_for_the_terminal_and_only_then(oci: Lab) -> None:
    container = oci.container({"process.terminal": True})
    done = container.create(check=False)
    assert done.code != 0
    assert "console-socket" in done.err or "console socket" in done.err
    container = oci.container()
    done = container.create("--console-socket", "/not/there", check=False)
    assert done.code != 0
    container = oci.container({"process.terminal": True})
    assert container.create("--console-socket", "/not/there", check=False).code != 0


def test_a_terminal_for_exec(oci: Lab) -> None:
    container = oci.container()
    with container.life(), console_socket(oci) as (path, listening):
        words = ("--tty", "--console-socket", path, "--detach")
        container.exec("tty; id -u; sleep 0.2", *words)
        master, _ = receive_master(listening)
        said = read_terminal(master, "\n0")
        os.close(master)
        assert said.splitlines()[0] == "/dev/pts/0"


@beyond_runc("sets the size when the program runs already")
def test_run_copies_the_callers_terminal(oci: Lab) -> None:
    """``run`` in a terminal, without a socket: the runtime copies, and the size goes along."""
    bundle = oci.bundle({"process.terminal": True}, script="stty size; read x; echo got $x; exit 5")
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 22, 66, 0, 0))
    process = subprocess.Popen(
        oci.command("run", "--bundle", str(bundle), oci.name_of(bundle)),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        said = read_terminal(master, "22 66")
        assert "22 66" in said
        os.write(master, b"line\n")
        assert "got line" in read_terminal(master, "got line")
        assert process.wait(timeout=20) == 5
    finally:
        process.kill()
        process.wait()
        os.close(master)
        oci.call("delete", "--force", oci.name_of(bundle), check=False)


@beyond_runc("leaves a terminal of the caller usable for TIOCSTI on old kernels")
def test_the_callers_terminal_is_not_inside(oci: Lab) -> None:
    """Yardstick O21: what is typed by ioctl inside reaches nobody outside."""
    master, slave = os.openpty()
    container = oci.container()
    try:
        with container.life():
            process = subprocess.Popen(
                oci.command("exec", container.name, "/bin/sh", "-c", "tty; exec 9<>/dev/tty"),
                stdin=slave,
                stdout=slave,
                stderr=slave,
            )
            process.wait(timeout=20)
            said = os.read(master, 4096).decode()
            assert "/dev/pts" not in said.splitlines()[0]
    finally:
        os.close(master)
        os.close(slave)


def test_mounts_may_leave_dev_to_the_image(oci: Lab) -> None:
    """No /dev mount: the devices are made in the image's own directory."""
    changes = {"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}]}
    said = oci.output("head -c 2 /dev/zero | wc -c; ls /dev/null", changes)
    assert said.split() == ["2", "/dev/null"]
