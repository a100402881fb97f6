"""Roots and volumes furnished by somebody hostile: nothing of the host is reached or changed.

O5 a /dev that is a symlink · O6 a /dev/null that is not · O9 a /proc or /sys that is not the
kernel's · O10 a mount target swapped with a symlink while the container starts. Each through
``twofold-oci`` and, where an image can carry the attack, through ``twofold run``. Every check has
a control: Debian's runc 1.1.5, which fails it, or the same steps resolved by string.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cleanup
import mount_lab
import oci_lab
import pytest

from twofold.errors import TwofoldError
from twofold.runtime import mount_targets

pytestmark = pytest.mark.system

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
STARTS, SLOW_STARTS = 60, 1000
NO_DEV = [oci_lab.PROC, oci_lab.SYS]

# Exchanges a directory with a symlink for as long as it lives, about 300,000 times a second.
SWAP = """
import ctypes, sys
a, b = (argument.encode() for argument in sys.argv[1:])
rename = ctypes.CDLL(None).renameat2
print("swapping", flush=True)
while True:
    rename(-100, a, -100, b, 2)
"""


@contextlib.contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    command = [sys.executable, "-c", SWAP, str(one), str(other)]
    swapper = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert swapper.stdout is not None
    assert swapper.stdout.readline() == b"swapping\n"
    try:
        yield
    finally:
        swapper.kill()
        swapper.communicate()


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[oci_lab.Lab]:
    """The control: the same bundles, run by a runtime known to fail."""
    found = shutil.which("runc")
    version = subprocess.run([found or "true", "--version"], capture_output=True, text=True)
    if "1.1.5" not in version.stdout:
        pytest.skip("the control is Debian's runc 1.1.5")
    lab = oci_lab.open_lab()
    lab.runtime = str(found)
    yield lab
    lab.close()


@pytest.fixture
def hostile_image(twofold: Runner, tmp_path: Path) -> Callable[..., str]:
    """Makes an image of one static busybox in which some paths are symlinks."""

    def make(name: str, **links: str) -> str:
        tarball = tmp_path / f"{name}.tar"
        write_tarball(tarball, {path.replace("_", "/"): target for path, target in links.items()})
        twofold("image", "import", tarball, name, check=True)
        return name

    return make


@pytest.fixture
def plain_tarball(tmp_path: Path) -> Path:
    write_tarball(tmp_path / "plain.tar", {})
    return tmp_path / "plain.tar"


def write_tarball(path: Path, links: dict[str, str]) -> None:
    with tarfile.open(path, "w") as tar:
        tar.add(oci_lab.BUSYBOX, "bin/busybox")
        for applet in ("sh", "ls", "cat", "true", "echo", "mount", "grep", "sleep"):
            tar.addfile(link("bin/" + applet, "busybox"))
        for directory in ("proc", "sys", "dev", "etc", "tmp"):
            if directory not in links:
                entry = tarfile.TarInfo(directory)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
        for name, target in links.items():
            tar.addfile(link(name, target))


def link(path: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


def replace(bundle: Path, path: str, target: str) -> None:
    """Put a symlink at ``path`` of the bundle's root."""
    place = bundle / "rootfs" / path
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    place.symlink_to(target)


# O5: /dev is a symlink to a directory of the host, nothing is mounted on it


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the host in which nothing may ever appear."""
    made = tmp_path / "victim"
    made.mkdir()
    return made


def test_o5_devices_are_not_made_through_a_symlink(oci: oci_lab.Lab, victim: Path) -> None:
    changes = {"mounts": NO_DEV}
    message = oci.refused(changes, "/dev", prepare=lambda b: replace(b, "dev", str(victim)))
    assert os.listdir(victim) == []
    if not oci.is_runc:
        assert "not a plain directory" in message
    relative = f"../../../../../../../..{victim}"
    oci.refused(changes, "/dev", prepare=lambda b: replace(b, "dev", relative))
    assert os.listdir(victim) == []


def test_o5_neither_with_a_tmpfs_to_be_mounted_there(oci: oci_lab.Lab, victim: Path) -> None:
    oci.refused({}, "'/dev'", "symlink", prepare=lambda b: replace(b, "dev", str(victim)))
    assert os.listdir(victim) == []


def test_o5_control_runc_makes_them_there(runc: oci_lab.Lab, victim: Path) -> None:
    runc.run(
        "true", {"mounts": NO_DEV}, prepare=lambda b: replace(b, "dev", str(victim)), check=False
    )
    assert os.listdir(victim) != []


def test_o5_through_an_image(
    twofold: Runner, hostile_image: Callable[..., str], victim: Path
) -> None:
    image = hostile_image("o5", dev=str(victim))
    done = twofold("run", "--rm", "--network", "none", image, "true")
    assert done.returncode == 125
    assert b"symlink" in done.stderr
    assert os.listdir(victim) == []
    control = hostile_image("o5-control")
    twofold("run", "--rm", "--network", "none", control, "true", check=True)


# O6: the file that hides secrets is itself somebody's


def secret_at(bundle: Path) -> None:
    (bundle / "rootfs/etc/secret").write_text("the secret")
    (bundle / "rootfs/etc/marker").write_text("not null")


SHOW_SECRET = "cat /etc/secret; grep /etc/secret /proc/self/mountinfo"


def test_o6_a_masked_file_is_behind_the_real_null_device(oci: oci_lab.Lab, tmp_path: Path) -> None:
    """/dev is a volume with a forged ``null``: no device is made, so nothing else refuses it."""
    forged = tmp_path / "dev"
    forged.mkdir()
    (forged / "null").symlink_to("/etc/marker")
    volume = {"destination": "/dev", "source": str(forged), "options": ["bind"]}
    changes = {"mounts": [*NO_DEV, volume], "linux.maskedPaths": ["/etc/secret"]}
    lines = oci.output(SHOW_SECRET, changes, prepare=secret_at).splitlines()
    assert len(lines) == 1
    assert lines[0].split(" ")[3:5] == ["/null", "/etc/secret"]
    assert " - devtmpfs " in lines[0]


def test_o6_a_forged_null_device_in_the_root_is_refused(oci: oci_lab.Lab) -> None:
    def prepare(bundle: Path) -> None:
        secret_at(bundle)
        replace(bundle, "dev/null", "/etc/marker")

    changes = {"mounts": NO_DEV, "linux.maskedPaths": ["/etc/secret"]}
    oci.refused(changes, "/dev/null", "exists in the root", prepare=prepare)


def test_o6_control_runc_puts_the_forged_file_there(runc: oci_lab.Lab) -> None:
    def prepare(bundle: Path) -> None:
        secret_at(bundle)
        replace(bundle, "dev/null", "/etc/marker")

    # Not by its output: with such a root runc gives the payload the marker as its stdin, too.
    changes = {"mounts": NO_DEV, "linux.maskedPaths": ["/etc/secret"]}
    bundle = runc.bundle(changes, script=f"({SHOW_SECRET}) > /tmp/out")
    prepare(bundle)
    runc.call("run", "--bundle", str(bundle), runc.name_of(bundle), check=False)
    shown = (bundle / "rootfs/tmp/out").read_text()
    assert shown.startswith("not null")
    assert "rootfs/etc/marker /etc/secret " in shown


def test_o6_through_an_image(twofold: Runner, hostile_image: Callable[..., str]) -> None:
    """Twofold's own /dev is always fresh: the image's is covered before anything is masked."""
    image = hostile_image("o6", dev_null="/etc/marker")
    words = ("cat", "/proc/keys", "/proc/self/mountinfo")
    done = twofold("run", "--rm", "--network", "none", image, *words, check=True)
    masks = [line for line in done.stdout.decode().splitlines() if " /proc/keys " in line]
    assert masks[0].split(" ")[3] == "/null"
    assert " - devtmpfs " in masks[0]


# O9: a /proc or /sys that is not the kernel's


@pytest.mark.parametrize("place", ["proc", "sys"])
@pytest.mark.parametrize("target", ["/tmp", "tmp", "../../../../tmp"])
def test_o9_a_symlink_in_place_of_proc_or_sys(oci: oci_lab.Lab, place: str, target: str) -> None:
    oci.refused({}, f"'/{place}'", "symlink", prepare=lambda b: replace(b, place, target))


@pytest.mark.parametrize("place", ["/proc", "/sys", "/proc/", "/tmp/../proc", "//sys"])
def test_o9_a_volume_in_place_of_proc_or_sys(oci: oci_lab.Lab, place: str, victim: Path) -> None:
    volume = {"destination": place, "source": str(victim), "options": ["bind"]}
    oci.refused({"mounts+": [volume]}, "file system can be mounted")
    oci.refused({"mounts": [volume, oci_lab.DEV]}, "file system can be mounted")


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "/proc/self", "/"])
def test_o9_a_volume_on_a_symlink_into_proc(
    oci: oci_lab.Lab, target: str, victim: Path, tmp_path: Path
) -> None:
    """The symlink lies in the image, and in a volume that was mounted before."""
    volume = {"destination": "/etc/x", "source": str(victim), "options": ["bind"]}
    oci.refused({"mounts+": [volume]}, "leads", prepare=lambda b: replace(b, "etc/x", target))
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "x").symlink_to(target)
    first = {"destination": "/v", "source": str(shared), "options": ["bind"]}
    oci.refused({"mounts+": [first, {**volume, "destination": "/v/x"}]}, "leads")


def test_o9_a_part_of_proc_is_not_proc(oci: oci_lab.Lab) -> None:
    part = {"destination": "/proc", "source": "/proc/sys", "options": ["rbind"]}
    oci.refused({"mounts": [part, oci_lab.DEV]}, "nothing but the proc file system")


def test_o9_control_the_kernels_own_are_fine(oci: oci_lab.Lab, victim: Path) -> None:
    (victim / "cpuinfo").write_text("one slow processor")
    standin = {"destination": "/proc/cpuinfo", "source": f"{victim}/cpuinfo", "options": ["bind"]}
    again = {"destination": "/sys", "source": "/sys", "options": ["rbind", "ro"]}
    changes = {"mounts+": [standin, again]}
    assert oci.output("cat /proc/cpuinfo", changes) == "one slow processor"


def test_o9_control_without_the_checks_a_volume_replaces_proc(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = mount_lab.a_root(f"{tmp_path}/bundle")
    config = mount_lab.a_config(
        {"destination": "/etc/x", "source": str(victim), "options": ["bind"]}
    )
    (victim / "mark").touch()
    Path(bundle, "rootfs/etc/x").symlink_to("/proc")
    with pytest.raises(TwofoldError, match="leads into /proc"):
        mount_lab.run(config, bundle, lambda: os.listdir("/proc"))
    monkeypatch.setattr(mount_targets, "_check", lambda *_: None)
    assert mount_lab.run(config, bundle, lambda: os.listdir("/proc")) == ["mark"]


@pytest.mark.parametrize("place", ["proc", "sys", "sys/fs", "dev/pts"])
def test_o9_through_an_image(
    twofold: Runner, hostile_image: Callable[..., str], place: str
) -> None:
    image = hostile_image(f"o9-{place.replace('/', '-')}", **{place.replace("/", "_"): "/tmp"})
    done = twofold("run", "--rm", "--network", "none", image, "true")
    if place == "dev/pts":  # covered by our own /dev before anything is mounted on it
        assert done.returncode == 0
        return
    if place == "sys/fs":  # covered by sysfs
        assert done.returncode == 0
        return
    assert done.returncode == 125
    assert b"symlink" in done.stderr


def test_o9_a_volume_through_a_symlink_of_an_image(
    twofold: Runner, hostile_image: Callable[..., str], victim: Path
) -> None:
    image = hostile_image("o9-volume", etc_p="/proc", etc_r="/")
    for target in ("/etc/p", "/etc/p/sys", "/etc/r", "/proc", "/sys/fs"):
        done = twofold(
            *("run", "--rm", "--network", "none", "-v", f"{victim}:{target}", image, "true")
        )
        assert done.returncode != 0, target
        assert b"mounted on" in done.stderr, done.stderr


# O10: the target of a mount is swapped with a symlink while the container starts


class Trap:
    """A volume whose ``x`` is now a directory, now a symlink to the host's directory.

    ``host`` holds a canary; its path does not exist in the container. Whatever is mounted or made
    through the symlink by string lands there and not in the container's root.
    """

    def __init__(self, directory: Path) -> None:
        self.host = directory / "host"
        self.volume = directory / "volume"
        self.source = directory / "source"
        for path in (self.host / "in", self.volume / "x", self.source):
            path.mkdir(parents=True)
        (self.host / "in/canary").write_text("canary")
        (self.source / "good").write_text("good")
        self.link = self.volume / "link"
        self.link.symlink_to(self.host)
        directory.chmod(0o755)

    def mounts(self) -> list[dict[str, Any]]:
        """The volume, the source on a directory in it, and one that has to be made first."""
        return [
            {"destination": "/v", "source": str(self.volume), "options": ["rbind"]},
            {"destination": "/v/x/in", "source": str(self.source), "options": ["rbind"]},
            {"destination": "/v/x/made/here", "type": "tmpfs"},
            {"destination": "/v/x/file", "source": f"{self.source}/good", "options": ["bind"]},
        ]

    def swapping(self) -> contextlib.AbstractContextManager[None]:
        return swapping(self.volume / "x", self.link)

    def assert_untouched(self) -> None:
        assert sorted(os.listdir(self.host)) == ["in"]
        assert os.listdir(self.host / "in") == ["canary"]
        assert os.listdir(self.source) == ["good"]
        with open("/proc/self/mountinfo", encoding="utf-8") as mountinfo:
            assert str(self.host.parent) not in mountinfo.read()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return Trap(tmp_path / "trap")


# Everything in the container that could be the host's: by the volume, by the canary's own path.
LOOK = "cat /v/*/in/canary /v/*/canary {host}/canary {host}/in/canary 2>/dev/null; echo looked"


@pytest.mark.parametrize("userns", [False, True], ids=["host-ids", "userns"])
@pytest.mark.parametrize("starts", [STARTS, pytest.param(SLOW_STARTS, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_o10_the_target_of_a_mount_is_swapped(
    oci: oci_lab.Lab, trap: Trap, userns: bool, starts: int
) -> None:
    changes: dict[str, Any] = {"mounts+": trap.mounts()}
    if userns:
        changes |= oci_lab.user_namespace()
        for path in (trap.volume, trap.volume / "x", trap.source):
            os.chown(path, oci_lab.ID_BASE, oci_lab.ID_BASE)
    bundle = oci.bundle(changes, script=LOOK.format(host=trap.host))
    if userns:
        oci.give(bundle)
    started = 0
    with trap.swapping():
        for _ in range(starts):
            done = oci.call("run", "--bundle", str(bundle), oci.name_of(bundle), check=False)
            assert "canary" not in done.out
            assert done.out == "looked\n" or done.code == 1, done
            started += done.code == 0
    trap.assert_untouched()
    assert started > 0  # else the attack met no mount at all


def test_o10_through_volumes_of_twofold_run(
    twofold: Runner, hostile_image: Callable[..., str], trap: Trap
) -> None:
    image = hostile_image("o10")
    volumes = ("-v", f"{trap.volume}:/v", "-v", f"{trap.source}:/v/x/in")
    volumes += ("-v", f"{trap.source}/good:/v/x/made/file")
    script = LOOK.format(host=trap.host)
    started = 0
    with trap.swapping():
        for _ in range(STARTS):
            done = twofold(
                *("run", "--rm", "--network", "none", *volumes, image, "sh", "-c", script)
            )
            assert b"canary" not in done.stdout
            assert done.returncode in (0, 125), done.stderr
            started += done.returncode == 0
    trap.assert_untouched()
    assert started > 0


def by_string(root_fd: int, target: str, **_: Any) -> int:
    """How a target must not be found: by its path below the place where the root is attached."""
    path = os.readlink(f"/proc/self/fd/{root_fd}") + target
    if target.startswith("/v/"):
        os.makedirs(path, exist_ok=True)
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def test_o10_control_targets_by_string_hit_the_host(
    trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = mount_lab.a_root(f"{tmp_path}/bundle")
    for place in ("v", "v/x"):
        Path(bundle, "rootfs", place).mkdir()
    config = mount_lab.a_config(*trap.mounts()[:3])
    monkeypatch.setattr(mount_targets, "open_target", by_string)
    with trap.swapping():
        for _ in range(4 * STARTS):
            with contextlib.suppress(TwofoldError):
                mount_lab.run(config, bundle, lambda: "")
            if os.listdir(trap.host) != ["in"]:
                break
    with pytest.raises(AssertionError):
        trap.assert_untouched()


def test_o10_control_the_same_steps_by_descriptor_do_not(trap: Trap, tmp_path: Path) -> None:
    """It is the resolving that makes the difference."""
    bundle = mount_lab.a_root(f"{tmp_path}/bundle")
    config = mount_lab.a_config(*trap.mounts()[:3])
    with trap.swapping():
        for _ in range(STARTS):
            with contextlib.suppress(TwofoldError):
                mount_lab.run(config, bundle, lambda: "")
    trap.assert_untouched()


# A read-only volume and a root inside that may mount


def test_a_read_only_volume_stays_so_for_root_who_may_mount(
    twofold: Runner, hostile_image: Callable[..., str], victim: Path
) -> None:
    image = hostile_image("remount")
    words = ("run", "--rm", "--network", "none", "--cap-add", "SYS_ADMIN")
    script = "mount -o remount,bind,rw /v; echo x > /v/written; grep ' /v ' /proc/self/mountinfo"
    done = twofold(*words, "-v", f"{victim}:/v:ro", image, "sh", "-c", script)
    assert b"ermission denied" in done.stderr or b"not permitted" in done.stderr
    assert b" /v ro,nosuid,nodev" in done.stdout
    assert os.listdir(victim) == []
    # Mounting as such works: it is the lock that forbids, not a missing capability.
    twofold(*words, image, "mount", "-t", "tmpfs", "tmpfs", "/tmp", check=True)


@pytest.fixture
def later_root() -> Iterator[dict[str, str]]:
    """A root whose keeper starts after the test's mounts: a host may not pass on later ones."""
    root = tempfile.mkdtemp(prefix="twofold-test.")
    yield {"TWOFOLD_ROOT": root}
    remains = cleanup.remove_root(root)
    assert not remains


def test_a_volume_holds_for_what_is_mounted_below_it_and_hears_nothing_later(
    twofold: Runner, plain_tarball: Path, later_root: dict[str, str], tmp_path: Path
) -> None:
    volume = mount_lab.a_volume(mount_lab.for_anybody(tmp_path))
    late = volume / "late"
    late.mkdir()
    mounted = mount_lab.mounted
    with mounted(volume, volume, "--bind", "--make-shared"), mount_lab.a_tree(volume):
        twofold("image", "import", plain_tarball, "plain", check=True, env=later_root)
        words = ("run", "-d", "--name", "below", "--network", "none", "-v", f"{volume}:/v:ro")
        twofold(*words, "plain", "sleep", "1000", check=True, env=later_root)
        with mounted("tmpfs", late, "-t", "tmpfs"):
            (late / "secret").touch()
            script = "cat /proc/self/mountinfo; ls /v/late; echo x > /v/below/deep"
            done = twofold("exec", "below", "sh", "-c", script, env=later_root)
        twofold("rm", "-f", "below", check=True, env=later_root)
    lines = [line.split(" ") for line in done.stdout.decode().splitlines()]
    below = next(fields for fields in lines if fields[4:5] == ["/v/below"])
    assert below[5].startswith("ro,nosuid,nodev")
    assert b"Read-only file system" in done.stderr
    assert b"secret" not in done.stdout
    assert not any(fields[4:5] == ["/v/late"] for fields in lines)
