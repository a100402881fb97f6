"""Debian built from this host's archive: what is in it, what is not, and stopping halfway."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twofold.errors import Conflict, TwofoldError
from twofold.image.sources.bootstrap import build
from twofold.image.store import ImageStore
from twofold.model.image import Image

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def temporary() -> Iterator[Path]:
    """Where these builds have their temporary roots, so that another's build is not in sight."""
    with tempfile.TemporaryDirectory(prefix="twofold-test-build.", dir="/var/tmp") as path:
        os.chmod(path, 0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", path)
            yield Path(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(str(tmp_path_factory.mktemp("bootstrap") / "images"))


@pytest.fixture(scope="module")
def told() -> list[tuple[float | None, str]]:
    return []


@pytest.fixture(scope="module")
def image(store: ImageStore, told: list[tuple[float | None, str]]) -> Image:
    """Debian with a service, which is the harder case."""
    return build(store, "debian", include=["apache2"], progress=lambda *step: told.append(step))


@pytest.fixture
def leftovers(temporary: Path) -> Iterator[None]:
    """No temporary root and no mount of it outlives a build."""
    yield
    assert os.listdir(temporary) == []
    assert str(temporary) not in Path("/proc/self/mountinfo").read_text()


def test_the_image_is_complete_small_and_neutral(store, image, told, leftovers) -> None:
    root = Path(store.layer_dirs(image)[0])
    assert image.names == ["debian:bookworm"]
    assert image.source == "mmdebstrap bookworm"
    assert image.size_bytes < 300 << 20
    for name in (
        "usr/sbin/init",
        "usr/bin/ip",
        "usr/bin/ps",
        "usr/bin/apt-get",
        "usr/bin/gpgv",
        "usr/bin/dbus-daemon",
        "etc/ssl/certs/ca-certificates.crt",
        "usr/sbin/apache2",
    ):
        assert os.path.lexists(root / name), name
    assert (root / "etc/machine-id").read_bytes() == b""
    assert (root / "etc/resolv.conf").read_bytes() == b""
    assert (root / "etc/hostname").read_text() == "localhost\n"
    assert list((root / "var/lib/apt/lists").glob("*_*")) == []
    assert list((root / "var/cache/apt").rglob("*.deb")) == []
    assert not (root / "usr/sbin/policy-rc.d").exists()
    assert sorted(os.listdir(root / "etc/apt/apt.conf.d")) == [
        "01autoremove",
        "70debconf",
        "99mmdebstrap",
    ]
    assert "trusted" not in (root / "etc/apt/sources.list").read_text()
    known = [fraction for fraction, _ in told if fraction is not None]
    assert known == sorted(known)
    assert len({message for _, message in told}) >= 5


def test_no_service_was_started(image: Image) -> None:
    names = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                names.append(Path(f"/proc/{entry}/comm").read_text().strip())
            except OSError:
                continue
    assert "apache2" not in names


def test_the_same_request_is_answered_at_once(store: ImageStore, image: Image) -> None:
    started = time.monotonic()
    assert build(store, "debian:bookworm", include=["apache2"]).digest == image.digest
    assert time.monotonic() - started < 1
    with pytest.raises(Conflict, match="exists"):
        build(store, "debian", include=["vsftpd"])


@pytest.mark.slow
def test_a_package_that_does_not_exist(store: ImageStore, leftovers: None) -> None:
    with pytest.raises(TwofoldError, match="no-such-package-at-all"):
        build(store, "odd", include=["no-such-package-at-all"])
    assert "odd:latest" not in [name for image in store.list() for name in image.names]


def test_a_cancelled_build_stops_soon_and_leaves_nothing(store, leftovers: None) -> None:
    class CancelledError(Exception):
        pass

    def progress(fraction: float | None, message: str) -> None:
        if "base system" in message:
            raise CancelledError

    threads = threading.active_count()
    with pytest.raises(CancelledError):
        build(store, "cancelled", progress=progress)
    assert threading.active_count() == threads
    assert os.listdir(Path(store.layer_dirs(store.list()[0])[0]).parents[1] / "tmp") == []


def test_a_killed_builder_takes_mmdebstrap_along(tmp_path: Path) -> None:
    """The host's /dev, which mmdebstrap binds into its root, must survive as well."""
    devices = sorted(os.listdir("/dev"))
    script = (
        "import sys\nfrom twofold.image.store import ImageStore\n"
        "from twofold.image.sources.bootstrap import build\n"
        "build(ImageStore(sys.argv[1]), 'debian', progress=lambda *s: print(s[1], flush=True))\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o755)
    builder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "images")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert builder.stdout is not None
    for line in builder.stdout:
        if "configuring the base" in line:
            break
    builder.kill()
    builder.wait()
    builder.stdout.close()
    deadline, looks = time.monotonic() + 20, 0
    # The kernel tells nobody else's child of a death. One look does not do: who is born during it,
    # of a parent that dies during it, is not in its list.
    while looks < 5 and time.monotonic() < deadline:
        looks = 0 if _users_of(temporary) else looks + 1
        time.sleep(0.1)
    assert _users_of(temporary) == []
    assert str(temporary) not in Path("/proc/self/mountinfo").read_text()
    assert sorted(os.listdir("/dev")) == devices
    ImageStore(str(tmp_path / "images"))
    assert os.listdir(tmp_path / "images/tmp") == []
    assert os.listdir(temporary) == []


def _users_of(path: Path) -> list[str]:
    """Processes that name the directory in their arguments or stand in it."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_text() + os.readlink(f"/proc/{entry}/cwd")
        except OSError:
            continue
        if str(path) in words:
            found.append(words.replace("\0", " "))
    return found
