"""The demonstration behind ``scripts/demo``. Talks to Twofold only through its command.

Everything it starts is called ``demo-…`` and is removed before and after, so that it can share the
machine's default root with other work; the images it builds stay, and make the second run quick.
"""

import contextlib
import ftplib
import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TWOFOLD = Path(__file__).resolve().parents[1] / ".venv/bin/twofold"
WEB_IMAGE, FTP_IMAGE = "demo-web-image", "demo-ftp-image"
WEB, FTP = "demo-web", "demo-ftp"
WEB_ROOT, FTP_ROOT = "/var/www/html", "/srv/ftp"
SERVER_TIMEOUT_S = 120.0
LIVE = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"

# Runs inside, on nothing but a shell and coreutils. Each line is "name: value". The first line is
# what "time to first output" measures; the last read keeps the guest there to be looked at.
LOOK_AROUND = r"""
echo ready
echo "kernel: $(uname -sr)"
echo "cpu: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1) x $(nproc)"
nic=/sys/class/net/eth0
if [ -e $nic/device/driver ]; then
    echo "nic: eth0, driver $(basename "$(readlink $nic/device/driver)")"
elif [ "$(cat $nic/iflink)" != "$(cat $nic/ifindex)" ]; then
    echo "nic: eth0, driver veth (one end of a pair; the other end is on the host)"
fi
threads=0
for directory in /proc/[0-9]*; do
    command=$({ tr '\0' ' ' <$directory/cmdline; } 2>/dev/null) || continue
    if [ -n "$command" ]; then echo "process: ${directory#/proc/} $command"
    else threads=$((threads + 1)); fi
done
echo "threads: $threads"
echo "end:"
read -r _ || true
"""


@dataclass(frozen=True, kw_only=True)
class Wall:
    """One of the three ways to run the same image."""

    name: str
    flags: tuple[str, ...]
    isolation: str
    hardware: str


WALLS = (
    Wall(name="demo-container", flags=(), isolation="container", hardware="the host's"),
    Wall(name="demo-virtio", flags=("--vm",), isolation="vm", hardware="virtio"),
    Wall(
        name="demo-emulated",
        flags=("--vm", "--hardware", "emulated"),
        isolation="vm",
        hardware="emulated",
    ),
)


@dataclass(kw_only=True)
class Seen:
    """What one start of a wall showed."""

    first_output_s: float
    memory_bytes: int
    facts: dict[str, str] = field(default_factory=dict)
    processes: list[str] = field(default_factory=list)


class DemoError(Exception):
    """Something did not do what it should; the message says what."""


# ---------------------------------------------------------------- drawing


def paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if LIVE and not os.environ.get("NO_COLOR") else text


def title(text: str) -> None:
    print(f"\n{paint(text, '1')}", flush=True)


def shown(command: list[str]) -> None:
    """The command as a person would type it."""
    words = ["twofold", *("'…'" if "\n" in word else word for word in command)]
    print(paint(f"$ {shortened(' '.join(words), 118)}", "36"), flush=True)


def shortened(line: str, width: int) -> str:
    """Long command lines say less, not more."""
    return line if len(line) <= width else f"{line[: width - 1].rstrip()}…"


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows that something is going on, and for how long, for steps the command does not draw."""
    done = threading.Event()
    began = time.monotonic()

    def draw() -> None:
        if not LIVE:
            if not done.wait(1):
                print(f"  {text} …", flush=True)
            return
        while not done.wait(0.2):
            elapsed_s = time.monotonic() - began
            if elapsed_s > 1:
                print(f"\r\033[K  {text} … {elapsed_s:.0f} s", end="", flush=True)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        elapsed_s = time.monotonic() - began
        if LIVE:
            print("\r\033[K", end="")
        if elapsed_s > 1:
            print(f"  {text}: {elapsed_s:.1f} s", flush=True)


def table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(paint(line.rstrip(), "1") if index == 0 else line.rstrip())


# ---------------------------------------------------------------- the command


def twofold(*arguments: str, check: bool = True) -> str:
    """Run the command, its progress going to the terminal; what it printed."""
    done = subprocess.run([TWOFOLD, *arguments], stdout=subprocess.PIPE, check=False)
    if check and done.returncode != 0:
        raise DemoError(f"twofold {' '.join(arguments)} exited with {done.returncode}")
    return done.stdout.decode(errors="replace")


def quietly(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([TWOFOLD, *arguments], capture_output=True, check=False)


def show(name: str) -> dict[str, object]:
    found = json.loads(twofold("show", "--json", name))
    return found[0] if isinstance(found, list) else found


def remove_ours() -> None:
    """Every instance of the demo, whether this run made it or one that was interrupted."""
    names = [wall.name for wall in WALLS] + [WEB, FTP]
    for name in names:
        quietly("rm", "--force", name)


def ensure_image(name: str, *packages: str) -> None:
    if quietly("image", "show", name).returncode == 0:
        print(f"image {name} is there already")
        return
    command = ["image", "build", name]
    if packages:
        command += ["--include", ",".join(packages)]
    shown(command)
    twofold(*command)


# ---------------------------------------------------------------- one image, three walls


def start(wall: Wall) -> Seen:
    """Start the image behind one wall, listen to what it tells, weigh it, let it end."""
    command = ["run", "--rm", "--interactive", "--name", wall.name, *wall.flags]
    command += ["debian", "sh", "-c", LOOK_AROUND]
    began = time.perf_counter()
    process = subprocess.Popen(
        [TWOFOLD, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.stdin.close)
        output = io.TextIOWrapper(process.stdout, errors="replace")
        first = output.readline().strip()
        seen = Seen(first_output_s=time.perf_counter() - began, memory_bytes=0)
        if first != "ready":
            raise DemoError(f"{wall.name} said {first!r} instead of 'ready'")
        for line in output:
            name, _, value = line.strip().partition(": ")
            if name == "end:":
                break
            if name == "process":
                seen.processes.append(value)
            else:
                seen.facts[name] = value
        pid = show(wall.name).get("pid")
        seen.memory_bytes = proportional_memory(pid) if isinstance(pid, int) else 0
        stack.close()  # end of input: the shell inside ends
        if process.wait() != 0:
            raise DemoError(f"{wall.name} exited with {process.returncode}")
    return seen


def proportional_memory(pid: int) -> int:
    """PSS of a process and all below it: shared pages are counted once, by their share."""
    total = 0
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        total += int(found[1]) * 1024 if found else 0
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                total += proportional_memory(int(child))
    return total


def by_number(line: str) -> tuple[int, str]:
    """Sort key for lines that start with a process's number, and for others after them."""
    found = re.match(r"(?:process: )?(\d+)", line)
    return (int(found[1]) if found else sys.maxsize, line)


def tell(seen: Seen) -> None:
    for name in ("kernel", "cpu", "nic"):
        print(f"  {name:<9} {seen.facts.get(name, 'unknown')}")
    for index, process in enumerate(sorted(seen.processes, key=by_number)):
        print(f"  {'processes' if index == 0 else '':<9} {shortened(process.rstrip(), 88)}")
    if int(seen.facts.get("threads", "0")):
        print(f"  {'':<9} and {seen.facts['threads']} threads of its own kernel")


def three_walls() -> list[list[str]]:
    rows = [["isolation", "hardware", "guest kernel", "1st start", "2nd start", "host memory"]]
    for wall in WALLS:
        title(f"The same image as {wall.isolation}, hardware: {wall.hardware}")
        shown(["run", "--rm", *wall.flags, "debian", "sh", "-c", LOOK_AROUND])
        first = start(wall)
        tell(first)
        second = start(wall)
        rows.append(
            [
                wall.isolation,
                wall.hardware,
                first.facts.get("kernel", "unknown"),
                f"{first.first_output_s:.2f} s",
                f"{second.first_output_s:.2f} s",
                f"{second.memory_bytes / (1 << 20):.1f} MiB",
            ]
        )
    return rows


# ---------------------------------------------------------------- two servers, either wall


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody uses just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answered(text: str, fetch: Callable[[], bytes]) -> bytes:
    """What the server sends, once it listens."""
    deadline = time.monotonic() + SERVER_TIMEOUT_S
    with progress(text):
        while True:
            try:
                return fetch()
            except (OSError, EOFError, ftplib.Error) as error:
                if time.monotonic() > deadline:
                    raise DemoError(f"{text}: {error}") from error
                time.sleep(0.1)  # the only sign of a listening server is that it answers


def fetch_page(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/hello.html", timeout=10) as reply:
        return bytes(reply.read())


def fetch_file(port: int) -> bytes:
    received = io.BytesIO()
    with ftplib.FTP(timeout=10) as connection:
        connection.connect("127.0.0.1", port)
        connection.login()
        connection.retrbinary("RETR hello.txt", received.write)
    return received.getvalue()


def start_servers(flags: tuple[str, ...]) -> tuple[int, int]:
    """Apache in one instance, vsftpd in another; the ports of the host that lead to them."""
    web_port, ftp_port, data_port = free_ports(3)
    web = ["run", "--detach", "--name", WEB, *flags, "-p", f"127.0.0.1:{web_port}:80"]
    web += [WEB_IMAGE, "apache2ctl", "-D", "FOREGROUND"]
    ftp = ["run", "--detach", "--name", FTP, *flags, "-p", f"127.0.0.1:{ftp_port}:21"]
    ftp += ["-p", f"127.0.0.1:{data_port}:{data_port}"]
    # Options after the file, or the file would have the last word.
    ftp += [FTP_IMAGE, "vsftpd", "/etc/vsftpd.conf", "-obackground=NO", "-olisten=YES"]
    ftp += ["-olisten_ipv6=NO", "-oanonymous_enable=YES", "-oseccomp_sandbox=NO"]
    ftp += ["-osecure_chroot_dir=/srv"]
    ftp += [f"-opasv_min_port={data_port}", f"-opasv_max_port={data_port}"]
    for command in (web, ftp):
        shown(command)
        twofold(*command)
    return web_port, ftp_port


def put(instance: str, path: str, content: bytes) -> None:
    """A file into a running instance, through ``cp``."""
    local = Path(f"/tmp/twofold-demo-{os.getpid()}")
    local.write_bytes(content)
    local.chmod(0o644)
    try:
        command = ["cp", str(local), f"{instance}:{path}"]
        shown(command)
        twofold(*command)
    finally:
        local.unlink()


def inside(name: str) -> None:
    """What one of the two servers can see: itself, and nothing of its neighbour."""
    script = (
        "for d in /proc/[0-9]*; do c=$({ tr '\\0' ' ' <$d/cmdline; } 2>/dev/null);"
        ' [ -n "$c" ] && echo "process: ${d#/proc/} $c"; done;'
        f' for f in {WEB_ROOT}/* {FTP_ROOT}/*; do [ -e "$f" ] && echo "file: $f"; done;'
        ' for s in apache2 vsftpd; do echo "server: $(command -v $s)"; done'
    )
    print(f"  inside {name}")
    other = "vsftpd" if name == WEB else "apache2"
    lines = twofold("exec", name, "sh", "-c", script).splitlines()
    for line in sorted(lines, key=by_number):
        if "for d in" in line or line == "server: ":
            continue
        print(f"    {shortened(line.rstrip(), 92)}")
        if other in line:
            raise DemoError(f"{name} can see {other}, which is its neighbour's: {line}")


def two_servers(flags: tuple[str, ...]) -> None:
    wall = "a virtual machine" if flags else "a container"
    title(f"A web server and an FTP server, each in {wall} of its own")
    web_port, ftp_port = start_servers(flags)
    token = secrets.token_hex(8)
    page = f"<h1>Hello from the web server {token}</h1>\n".encode()
    text = f"Hello from the FTP server {token}\n".encode()
    put(WEB, f"{WEB_ROOT}/hello.html", page)
    put(FTP, f"{FTP_ROOT}/hello.txt", text)
    for kind, expected, url, fetch in (
        ("page", page, f"http://127.0.0.1:{web_port}/hello.html", lambda: fetch_page(web_port)),
        ("file", text, f"ftp://127.0.0.1:{ftp_port}/hello.txt", lambda: fetch_file(ftp_port)),
    ):
        got = answered(f"fetching {url}", fetch)
        if got != expected:
            raise DemoError(f"{url} gave {got!r} instead of {expected!r}")
        print(f"  the host fetched the {kind} {url}: {got.decode().strip()}")
    inside(WEB)
    inside(FTP)
    with progress("stopping both"):
        twofold("rm", "--force", WEB, FTP)


def main() -> None:
    began = time.monotonic()
    remove_ours()
    try:
        title("Images, built from Debian's own signed archive")
        ensure_image("debian")
        ensure_image(WEB_IMAGE, "apache2")
        ensure_image(FTP_IMAGE, "vsftpd")
        rows = three_walls()
        two_servers(())
        two_servers(("--vm",))
        title("What each wall costs on this machine")
        table(rows)
        print("\nstart: from the command to the first output; host memory: PSS of all processes")
        print(f"the whole demo took {time.monotonic() - began:.0f} s")
    finally:
        remove_ours()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except DemoError as failure:
        sys.exit(f"demo: failed: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
