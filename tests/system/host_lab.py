"""Other hosts to test on: Debian machines with systemd, made by Twofold itself, Twofold in them.

The checkout with its ``.venv`` is seen in the guest at the same path, read-only, through an erofs
image of it: under emulation a file system that the guest's kernel caches costs a tenth of 9p. The
guest's Twofold keeps its things on an ext4 of its own, for an overlay's upper directory may not
lie on the guest's root, which is an overlay already; images are put there from outside.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]

IMAGE = "test-host"
# What Twofold needs to run containers on a Debian host, beside what every Debian image has.
PACKAGES = (
    *("apparmor", "busybox-static", "e2fsprogs", "libnftables1", "libseccomp2", "nftables"),
    *("python3", "strace", "tini"),
)
# How systemd is told what the kernel's command line would tell it.
V1_ONLY = "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
_NOT_PACKED = (
    r"^(\.git|\.hypothesis|\.[a-z]+_cache|bench|docs)($|/)",
    r"site-packages/(mypy|mypyc|ruff|pip)[^/]*($|/)",
)
_BOOT_TIMEOUT_S = 240.0
_STATE_BYTES = 4 << 30

_WAIT = r"""
while :; do
    case $(systemctl is-system-running --wait 2>/dev/null) in
        running | degraded) break ;;
    esac
    sleep 0.3
done
"""
# Run in the guest; $1 is the checkout.
_INSTALL = r"""
set -eu
cat >>/etc/fstab <<END
/share/checkout.erofs $1 erofs loop,ro,nofail
/share/state.ext4 /var/lib/twofold ext4 loop,nofail
END
mkdir -p "$1" /var/lib/twofold
mount "$1"
mount /var/lib/twofold
systemd-sysusers "$1/packaging/twofold.sysusers.conf"
ln -s "$1/.venv/bin/twofold" /usr/local/bin/twofold
for unit in twofold.service twofold.socket; do
    sed "s|@TWOFOLD@|$1/.venv/bin/twofold|g" "$1/packaging/$unit" >"/etc/systemd/system/$unit"
done
"""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine of its own. ``sh`` and ``twofold`` run in it, as root."""

    name: str
    outer: Runner

    def run(
        self, *command: str, stdin: bytes = b"", timeout_s: float = 120
    ) -> "subprocess.CompletedProcess[bytes]":
        return self.outer(
            *("exec", "-i", "-w", "/", self.name, *command), stdin=stdin, timeout_s=timeout_s
        )

    def sh(self, script: str, *arguments: str, timeout_s: float = 120) -> str:
        """Output of a bash script; it must succeed."""
        done = self.run("bash", "-c", script, "bash", *arguments, timeout_s=timeout_s)
        return self._output(done, script)

    def twofold(self, *arguments: str, timeout_s: float = 120) -> str:
        """Output of the guest's own ``twofold``; it must succeed."""
        done = self.run("twofold", *arguments, timeout_s=timeout_s)
        return self._output(done, f"twofold {' '.join(arguments)}")

    def wait_until_up(self) -> None:
        self.sh(_WAIT, timeout_s=_BOOT_TIMEOUT_S)

    def _output(self, done: "subprocess.CompletedProcess[bytes]", what: str) -> str:
        assert done.returncode == 0, (
            f"{self.name}: {what}\nexited with {done.returncode}\n"
            f"{done.stdout.decode(errors='replace')[-3000:]}\n"
            f"{done.stderr.decode(errors='replace')[-3000:]}"
        )
        return done.stdout.decode()

    def cgroup_of(self, instance: str) -> str:
        """The instance's group, relative to the mounts."""
        shown = json.loads(self.twofold("show", "--json", instance))
        return f"twofold/{shown['id']}"


def build_image(twofold: Runner, name: str = IMAGE, packages: Sequence[str] = PACKAGES) -> str:
    if not os.path.exists("/etc/debian_version") or sys.version_info[:2] != (3, 11):
        pytest.skip("the guest runs the checkout's .venv: needs Debian 12's Python on both sides")
    if twofold("image", "show", name).returncode != 0:
        include = ",".join(packages)
        twofold("image", "build", name, "--include", include, timeout_s=600, check=True)
    return name


def pack_checkout(clone: Path, target: Path) -> None:
    """The checkout as one read-only image, compiled: nobody can write bytecode beside it."""
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", clone / "src", clone / "tests"], check=True
    )
    excluded = [f"--exclude-regex={pattern}" for pattern in _NOT_PACKED]
    _quietly("mkfs.erofs", *excluded, str(target), str(clone))


def make_state(
    store: Path, images: Sequence[str], target: Path, scratch: Path, *, kernel: Path | None = None
) -> None:
    """An ext4 to be mounted at /var/lib/twofold, with these images of ours in its store, and the
    guests' kernel, so that none need be fetched."""
    top = scratch / "state"
    top.mkdir(mode=0o700)
    _copy_images(store, images, top / "images")
    if kernel is not None:
        shutil.copytree(kernel, top / "kernels/linux")
    with target.open("wb") as file:
        file.truncate(_STATE_BYTES)
    quick = "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
    _quietly("mkfs.ext4", "-q", "-F", "-m", "0", "-E", quick, "-d", str(top), str(target))
    shutil.rmtree(top)


def copy_sparse(source: Path, target: Path) -> None:
    _quietly("cp", "--sparse=always", "--reflink=auto", str(source), str(target))


def _copy_images(store: Path, images: Sequence[str], target: Path) -> None:
    """Part of an image store: index, blobs and layers of the named images, as they are."""
    index = json.loads((store / "index.json").read_text())
    wanted = [
        entry
        for entry in index["manifests"]
        if entry["annotations"]["org.opencontainers.image.ref.name"].removesuffix(":latest")
        in images
    ]
    assert len(wanted) == len(images), (images, index)
    (target / "blobs/sha256").mkdir(parents=True)
    (target / "layers").mkdir()
    for entry in wanted:
        manifest = json.loads(_copy_blob(store, target, entry["digest"]))
        config = json.loads(_copy_blob(store, target, manifest["config"]["digest"]))
        for digest in config["rootfs"]["diff_ids"]:
            name = digest.removeprefix("sha256:")
            for source in (store / "layers" / name, store / "layers" / f"{name}.json"):
                subprocess.run(["cp", "-a", source, target / "layers"], check=True)
    (target / "index.json").write_text(json.dumps({**index, "manifests": wanted}))
    shutil.copy(store / "oci-layout", target)


def make_disk(store: Path, image: str, target: Path) -> None:
    """An image of one layer, as ``image build`` makes them, as a disk to boot from."""
    index = json.loads((store / "index.json").read_text())
    for entry in index["manifests"]:
        if entry["annotations"]["org.opencontainers.image.ref.name"] == f"{image}:latest":
            manifest = _read_blob(store, entry["digest"])
            (layer,) = _read_blob(store, manifest["config"]["digest"])["rootfs"]["diff_ids"]
            layers = store / "layers" / layer.removeprefix("sha256:")
            _quietly("mkfs.erofs", "-T0", str(target), str(layers))
            return
    raise AssertionError((image, index))


def _read_blob(store: Path, digest: str) -> dict[str, Any]:
    path = store / f"blobs/sha256/{digest.removeprefix('sha256:')}"
    return dict(json.loads(path.read_text()))


def _copy_blob(store: Path, target: Path, digest: str) -> bytes:
    path = f"blobs/sha256/{digest.removeprefix('sha256:')}"
    shutil.copy(store / path, target / path)
    return (target / path).read_bytes()


def boot(
    twofold: Runner,
    name: str,
    share: Path,
    clone: Path,
    *,
    v1_only: bool = False,
    cpus: int = 1,
    memory: str = "1200m",
    image: str = IMAGE,
    options: Sequence[str] = (),
) -> Host:
    """Start the machine, install Twofold as ``scripts/setup`` does, start its unit."""
    twofold(
        *("run", "-d", "--system", "--vm", "--name", name, "--memory", memory),
        *("--cpus", str(cpus), "-v", f"{share}:/share"),
        *(("-e", f"SYSTEMD_PROC_CMDLINE={V1_ONLY}") if v1_only else ()),
        *options,
        image,
        check=True,
        timeout_s=_BOOT_TIMEOUT_S,
    )
    host = Host(name=name, outer=twofold)
    host.wait_until_up()
    host.sh(_INSTALL, str(clone), timeout_s=_BOOT_TIMEOUT_S)
    start = time.monotonic()
    host.sh("systemctl start twofold", timeout_s=_BOOT_TIMEOUT_S)
    print(f"{name}: the daemon was ready after {time.monotonic() - start:.1f} s")
    return host


def _quietly(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, (command, done.stderr[-2000:])
