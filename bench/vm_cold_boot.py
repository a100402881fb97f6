"""``twofold run --rm --vm`` from cold against raw QEMU with the same kernel, initrd and disks.

A VM is started with ``twofold run -d``; its QEMU command line, kernel, initrd and disks are read
from /proc. Raw QEMU then gets the very same machine on the host: no sandbox, no monitor, no
daemon, and the least peer that makes the agent run ``true``. So the ratio is what Twofold adds.
Budget: at most 1.3.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import TWOFOLD, once, verdict

from twofold.guest import protocol

BUDGET = 1.3
NAME = "bench-vm"


@dataclass(frozen=True, kw_only=True)
class RawMachine:
    """A QEMU command line whose descriptors are ``{name}`` again."""

    argv: list[str]
    disks: dict[str, Path]


def qemu_below(pid: int) -> int:
    """The QEMU among a sandbox's processes."""
    if "qemu-system" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
        return pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if found := qemu_below(int(child)):
            return found
    return 0


def capture(image: str, flags: list[str], directory: Path) -> RawMachine:
    """The machine that Twofold makes for this image, copied out of a running one."""
    base = [TWOFOLD, "run", "-d", "--vm", "--network", "none", "--name", NAME, *flags, image]
    subprocess.run([*base, "sleep", "infinity"], stdout=subprocess.DEVNULL, check=True)
    try:
        shown = subprocess.run(
            [TWOFOLD, "show", "--json", NAME], capture_output=True, check=True
        ).stdout
        pid = qemu_below(json.loads(shown)["pid"])
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        for path in Path(f"/proc/{pid}/root/boot").iterdir():
            if path.is_file():
                shutil.copyfile(path, directory / path.name)
        disks = {}
        for link in Path(f"/proc/{pid}/fd").iterdir():
            # By their files: QEMU closes the numbers of its command line once it has them.
            name = {".erofs": "root", ".img": "data"}.get(Path(os.readlink(link)).suffix)
            if name and name not in disks:
                disks[name] = directory / name
                subprocess.run(["cp", "--sparse=always", "-L", link, disks[name]], check=True)
    finally:
        subprocess.run([TWOFOLD, "rm", "-f", NAME], stdout=subprocess.DEVNULL, check=True)
    return RawMachine(argv=without_descriptors(argv, directory), disks=disks)


def without_descriptors(argv: list[str], directory: Path) -> list[str]:
    words, skip = [], False
    for index, word in enumerate(argv):
        following = argv[index + 1] if index + 1 < len(argv) else ""
        if skip:
            skip = False
            continue
        # Confinement and the control socket are Twofold's own: raw QEMU goes without.
        if word in ("-sandbox", "-mon") or (word == "-chardev" and "id=qmp" in following):
            skip = True
            continue
        word = re.sub(r"^fd=\d+(,set=\d+,opaque=(\w+))$", r"fd={\2}\1", word)
        word = re.sub(r"^(socket,id=(\w+)),fd=\d+", r"\1,fd={\2}", word)
        if re.search(r"mem-path=/proc/self/fd/\d", word):  # a fork of it brings its own
            word = re.sub(r",mem-path=[^,]*", "", word.replace("backend-file", "backend-memfd"))
        words.append(re.sub(r"^/boot/", f"{directory}/", word))
    return words


def boot_raw(machine: RawMachine, directory: Path) -> float:
    """Seconds from starting QEMU to its being gone, ``true`` having been run inside."""
    data = directory / "data.run"
    subprocess.run(["cp", "--sparse=always", machine.disks["data"], data], check=True)
    agent, agent_theirs = socket.socketpair()
    inner, inner_theirs = socket.socketpair()  # Twofold's own control of QEMU: nobody speaks
    serial, serial_theirs = socket.socketpair()
    fds = {
        "root": os.open(machine.disks["root"], os.O_RDONLY),
        "data": os.open(data, os.O_RDWR),
        "agent": agent_theirs.fileno(),
        "inner": inner_theirs.fileno(),
        "serial": serial_theirs.fileno(),
    }
    argv = [re.sub(r"\{(\w+)\}", lambda found: str(fds[found[1]]), word) for word in machine.argv]
    for fd in fds.values():
        os.set_inheritable(fd, True)
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin:/bin"})
    try:
        agent_theirs.close()
        run_true(agent)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    for fd in (fds["root"], fds["data"]):
        os.close(fd)
    for end in (agent, serial, serial_theirs, inner, inner_theirs):
        end.close()
    return seconds


def run_true(agent: socket.socket) -> None:
    """The least peer of the agent: configuration, one process, its exit."""
    parser = protocol.Parser(synchronise=True)
    stream = protocol.stream_of(protocol.PAYLOAD_SESSION, protocol.STDIN)
    config = {
        "mode": "application",
        "hostname": "bench",
        "network": None,
        "files": {},
        "shares": [],
        "sysctls": {},
        "time": time.time(),
        "entropy": os.urandom(32).hex(),
    }
    process = {
        "argv": ["true"],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "user": "",
        "tty": False,
        "capabilities": [],
        "no_new_privs": True,
        "rlimits": {},
        "seccomp": "",
    }
    while data := agent.recv(65536):
        for kind, _, body in parser.feed(data):
            if kind == protocol.HELLO:
                agent.sendall(protocol.encode_json(protocol.CONFIG, 0, config))
                request = {"kind": "payload", "process": process, "rows": None, "cols": None}
                agent.sendall(protocol.encode_json(protocol.OPEN, stream, request))
            elif kind == protocol.OPENED:
                agent.sendall(protocol.encode(protocol.EOF, stream))
            elif kind == protocol.EXIT:
                if protocol.decode_json(body)["exit_code"] != 0:
                    sys.exit(f"bench: true failed in the raw guest: {body!r}")
                return
            elif kind == protocol.ERROR:
                sys.exit(f"bench: the raw guest failed: {body!r}")
    sys.exit("bench: the raw guest ended before it ran anything")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--hardware", default="virtio", choices=["virtio", "emulated"])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    flags = ["--cold", "--network", "none", "--hardware", options.hardware]
    ours = [TWOFOLD, "run", "--rm", "--vm", *flags, options.image, "true"]
    raw_s, ours_s = [], []
    with tempfile.TemporaryDirectory(prefix="twofold-bench.") as name:
        directory = Path(name)
        machine = capture(options.image, flags, directory)
        for index in range(options.rounds + 1):
            raw, mine = boot_raw(machine, directory), once(ours)
            if index:  # the first round warms the page cache
                raw_s.append(raw)
                ours_s.append(mine)
            print(f"  raw {raw:.2f} s, twofold {mine:.2f} s", file=sys.stderr, flush=True)
    raw, mine = statistics.median(raw_s), statistics.median(ours_s)
    print(f"raw QEMU, {options.hardware}: median {raw * 1e3:.0f} ms ({options.rounds} rounds)")
    print(f"twofold run --rm --vm, {options.hardware}: median {mine * 1e3:.0f} ms")
    return verdict("twofold / raw QEMU", mine / raw, BUDGET)


if __name__ == "__main__":
    sys.exit(main())
