"""podman and dockerd of their own, with ``twofold-oci`` as their runtime, gone afterwards.

Nothing of an engine that may already run here is touched: data, sockets and state are below one
directory of the test, and the image is a tarball of one busybox.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import oci_lab

IMAGE = "twofold-test-busybox"
_PASSWD = b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"


class Engine:
    """``engine("run", …)`` is one call of the command line."""

    def __init__(self, prefix: Sequence[str], home: Path) -> None:
        self.prefix, self.home = list(prefix), home

    def __call__(
        self, *words: str, check: bool = True, stdin: bytes = b"", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*self.prefix, *words],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{words} exited with {done.returncode}: {done.stderr.decode()}")
        return done

    def says(self, *words: str) -> str:
        return self(*words).stdout.decode().strip()

    def until(self, wanted: str, *words: str, timeout_s: float = 30) -> str:
        """Ask again until the answer holds ``wanted``: an engine notices an end by itself."""
        deadline = time.monotonic() + timeout_s
        while wanted not in (said := self.says(*words)):
            assert time.monotonic() < deadline, f"{words}: {said}"
            time.sleep(0.1)  # no event of an engine is older than its state
        return said


def image_tarball() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("bin", "etc", "tmp", "dev", "proc", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        archive.add(oci_lab.BUSYBOX, "bin/busybox")
        for applet in (*oci_lab.APPLETS, "httpd"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(_PASSWD)
        archive.addfile(entry, io.BytesIO(_PASSWD))
    return buffer.getvalue()


@contextlib.contextmanager
def own_network() -> Iterator[list[str]]:
    """What to write before a command that shall have a network and mounts of its own: an engine's
    bridge and firewall rules then go with it."""
    script = "ip link set lo up && echo && exec sleep 600"
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", script], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout
        holder.stdout.readline()
        yield ["nsenter", "--target", str(holder.pid), "--net", "--mount"]
    finally:
        holder.kill()
        holder.wait()


@contextlib.contextmanager
def podman(runtime: str, *, before: Sequence[str] = ()) -> Iterator[Engine]:
    home = Path(f"/tmp/twofold-podman-{secrets.token_hex(3)}")
    home.mkdir()
    prefix = [*before, "podman", "--root", f"{home}/storage", "--runroot", f"{home}/run"]
    prefix += ["--network-config-dir", f"{home}/networks"]
    prefix += ["--tmpdir", f"{home}/tmp", "--cgroup-manager", "cgroupfs"]
    prefix += ["--events-backend", "none", "--runtime", runtime]
    engine = Engine(prefix, home)
    try:
        engine("import", "--quiet", "-", IMAGE, stdin=image_tarball())
        yield engine
    finally:
        engine("rm", "--all", "--force", "--time", "0", check=False)
        for mount in (f"{home}/storage/overlay", f"{home}/storage"):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def docker(runtime: str, *, before: Sequence[str] = ()) -> Iterator[Engine]:
    """Debian's dockerd with its own containerd. It has a bridge only in a network of its own."""
    home = Path(f"/tmp/twofold-docker-{secrets.token_hex(3)}")
    home.mkdir()
    socket_path = f"unix://{home}/docker.sock"
    argv = [*before, "/usr/sbin/dockerd", "--data-root", f"{home}/data"]
    argv += ["--exec-root", f"{home}/exec", "--pidfile", f"{home}/pid", "--host", socket_path]
    argv += ["--config-file", f"{home}/none.json"]
    if not before:
        argv += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
    argv += ["--add-runtime", f"twofold={runtime}", "--default-runtime", "twofold"]
    argv += ["--storage-driver", "vfs"]
    (home / "none.json").write_text("{}")
    with open(home / "log", "wb") as log:
        daemon = subprocess.Popen(argv, stdout=log, stderr=log)
    client = "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"
    engine = Engine([client, "--host", socket_path], home)
    try:
        deadline = time.monotonic() + 60
        while engine("version", check=False).returncode:
            said = (home / "log").read_text()[-1500:]
            assert daemon.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)  # dockerd says on no descriptor that it is ready
        engine("import", "-", IMAGE, stdin=image_tarball())
        yield engine
    finally:
        for name in engine("ps", "--all", "--quiet", check=False).stdout.decode().split():
            engine("rm", "--force", name, check=False)
        daemon.terminate()
        try:
            daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (target := line.split(" ")[4]).startswith(f"{home}/"):
                subprocess.run(["umount", "-l", target], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def containerd() -> Iterator[Engine]:
    """Debian's containerd and its shim, without dockerd: ``ctr`` in a namespace of its own."""
    token = secrets.token_hex(3)
    home = Path(f"/tmp/twofold-containerd-{token}")
    home.mkdir()
    config = f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\n'
    config += f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{home}/sock"\n'
    (home / "config.toml").write_text(config)
    with open(home / "log", "wb") as log:
        argv = ["containerd", "--config", str(home / "config.toml")]
        daemon = subprocess.Popen(argv, stdout=log, stderr=log)
    prefix = ["ctr", "--address", f"{home}/sock", "--namespace", f"twofold-test-{token}"]
    engine = Engine(prefix, home)
    try:
        deadline = time.monotonic() + 60
        while engine("version", check=False).returncode:
            said = (home / "log").read_text()[-1500:]
            assert daemon.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)  # containerd says on no descriptor that it is ready
        (home / "image.tar").write_bytes(image_archive())
        engine("image", "import", "--snapshotter", "native", str(home / "image.tar"))
        yield engine
    finally:
        for name in engine("task", "ls", "--quiet", check=False).stdout.decode().split():
            engine("task", "rm", "--force", name, check=False)
        for kind in ("container", "snapshot", "image"):
            words = [kind, "--snapshotter", "native"] if kind == "snapshot" else [kind]
            listed = engine(*words, "ls", *(["-q"] if kind != "snapshot" else []), check=False)
            for line in listed.stdout.decode().splitlines()[kind == "snapshot" :]:
                engine(*words, "rm", line.split()[0], check=False)
        daemon.terminate()
        daemon.wait(timeout=30)
        shutil.rmtree(home, ignore_errors=True)


def image_archive() -> bytes:
    """The same image in the form that ``docker save`` writes."""
    layer = image_tarball()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [
        {"Config": "config.json", "RepoTags": [f"local/{IMAGE}:latest"], "Layers": ["layer.tar"]}
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (
            ("layer.tar", layer),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
