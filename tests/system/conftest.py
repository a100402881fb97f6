"""Fixtures for tests with real guests: one Twofold of their own, gone afterwards.

``twofold_root``  the session's TWOFOLD_ROOT
``twofold``       runs the CLI on it: ``twofold("run", "--rm", image, "true")``
``inventory``     takes a snapshot of everything on the machine that belongs to it
``no_leaks``      fails the test when it leaves anything behind
``lone``          a daemon of the test's own, to be killed at will
``oci``           the OCI runtime under test, with a leak check of its own
``debian_image``, ``alpine_image``, ``busybox_image``   names of images that are there
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import belongings
import cleanup
import oci_lab
import pytest
from lone import Lone

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def twofold_root() -> Iterator[str]:
    """A fully separate Twofold. Its daemon starts on the first command."""
    given = os.environ.get("TWOFOLD_TEST_ROOT")
    root = given or tempfile.mkdtemp(prefix="twofold-test.", dir="/tmp")
    os.chmod(root, 0o700)
    yield root
    remains = cleanup.remove_root(root)
    assert not remains, f"left behind by the tests:\n{remains}"


@pytest.fixture(scope="session")
def twofold(twofold_root: str, clone: Path) -> Runner:
    """The CLI as a person calls it: whole process, bytes in, bytes out."""

    def run(
        *arguments: str | os.PathLike[str],
        stdin: bytes = b"",
        timeout_s: float = 180,
        env: dict[str, str] | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [clone / ".venv/bin/twofold", *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "TWOFOLD_ROOT": twofold_root, **(env or {})},
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"twofold {' '.join(map(str, arguments))} exited with {done.returncode}\n"
                f"stdout: {done.stdout.decode(errors='replace')[-2000:]}\n"
                f"stderr: {done.stderr.decode(errors='replace')[-4000:]}"
            )
        return done

    return run


@pytest.fixture(scope="session")
def debian_image(twofold: Runner) -> str:
    """Built once per session from the signed archive (about half a minute)."""
    if twofold("image", "show", "debian").returncode != 0:
        twofold("image", "build", "debian", timeout_s=600, check=True)
    return "debian"


@pytest.fixture(scope="session")
def alpine_image(twofold: Runner, shared: Path) -> str:
    """musl, busybox, no systemd."""
    return _import(twofold, "alpine", shared, "alpine-minirootfs-*-x86_64.tar.gz")


@pytest.fixture(scope="session")
def busybox_image(twofold: Runner, shared: Path) -> str:
    """One static binary."""
    return _import(twofold, "busybox", shared, "busybox-musl-amd64-rootfs.tar.gz")


def _import(twofold: Runner, name: str, shared: Path, pattern: str) -> str:
    tarball = next((shared / "images").glob(pattern))
    if twofold("image", "show", name).returncode != 0:
        twofold("image", "import", tarball, name, check=True)
    return name


@pytest.fixture(scope="session")
def inventory(twofold_root: str) -> Callable[[], belongings.Inventory]:
    """``before = inventory(); …; assert not before.diff(inventory())``."""
    return lambda: belongings.take(twofold_root)


@pytest.fixture
def no_leaks(
    twofold: Runner, inventory: Callable[[], belongings.Inventory]
) -> Iterator[Callable[[], None]]:
    """Compares before and after the test; call the value to compare in the middle as well."""
    twofold("list", check=True)  # the daemon and what it makes once are not a leak
    before = inventory()

    def compare() -> None:
        deadline = time.monotonic() + 5
        while difference := before.leaks(inventory()):
            if time.monotonic() > deadline:
                pytest.fail(f"left behind:\n{difference}")
            time.sleep(0.05)  # no event tells when the kernel let go of a namespace

    yield compare
    compare()


@pytest.fixture
def lone(tmp_path: Path, clone: Path) -> Iterator[Lone]:
    """A daemon of the test's own, to be started and killed at will."""
    made = Lone(tmp_path / "root", clone)
    yield made
    if made.daemon is not None and made.daemon.poll() is None:
        made.kill(signal.SIGTERM)
    remains = cleanup.remove_root(str(made.root))
    assert not remains, f"left behind:\n{remains}"


@pytest.fixture(scope="session")
def oci_lab_of_session() -> Iterator[oci_lab.Lab]:
    lab = oci_lab.open_lab()
    if not os.path.exists(lab.runtime):
        pytest.fail(f"no OCI runtime at {lab.runtime}")
    yield lab
    lab.close()


@pytest.fixture
def oci(oci_lab_of_session: oci_lab.Lab, request: pytest.FixtureRequest) -> Iterator[oci_lab.Lab]:
    """An OCI runtime to call (``TWOFOLD_OCI_RUNTIME``). Fails the test when anything stays."""
    lab = oci_lab_of_session
    beyond = request.node.get_closest_marker("beyond_runc")
    if beyond and lab.is_runc:
        pytest.skip(f"runc: {beyond.kwargs['reason']}")
    before = lab.inventory()
    yield lab
    for container in list(lab.containers):
        container.delete("--force", check=False)
    lab.containers.clear()
    lab.assert_nothing_new(before)
