"""A container of a hostile tenant: fixtures and probes for the ``test_hostile_*`` files.

``prison``      a container with nothing but defaults
``unfiltered``  the same without its filter: a control of what the filter does
``probes``      a directory that both see as /probes, with hostile.pl in it
"""

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
HERE = Path(__file__).parent
APART = ("--network", "none")


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that containers see as /probes."""
    folder = tmp_path_factory.mktemp("probes")
    folder.chmod(0o755)
    shutil.copy(HERE / "probes/hostile.pl", folder)
    (folder / "hostile.pl").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def prison(twofold: Runner, debian_image: str, probes: Path) -> Iterator[str]:
    """A container with nothing but defaults."""
    yield from container(twofold, "hostile", debian_image, probes)


@pytest.fixture(scope="module")
def unfiltered(twofold: Runner, debian_image: str, probes: Path) -> Iterator[str]:
    """The same without its filter: the control of what the filter does."""
    opened = ("--security-opt", "seccomp=unconfined")
    yield from container(twofold, "hostile-control", debian_image, probes, *opened)


def container(twofold: Runner, name: str, image: str, probes: Path, *options: str) -> Iterator[str]:
    """Start one; yields its name and removes it. For fixtures and ``for`` loops alike."""
    twofold(
        *("run", "-d", "--name", name, *APART, "-v", f"{probes}:/probes", *options),
        *(image, "sleep", "infinity"),
        check=True,
    )
    yield name
    twofold("rm", "-f", name, check=True)


def inside(twofold: Runner, name: str, *command: str, **options: Any) -> str:
    return twofold("exec", name, *command, check=True, **options).stdout.decode()


class Background:
    """A verb of the probe that runs in a container until it is told to stop."""

    def __init__(self, twofold: Runner, name: str, probes: Path, *words: str) -> None:
        self.lines: list[str] = []
        self._stop = probes / "stop"
        self._stop.unlink(missing_ok=True)
        command = ("perl", "/probes/hostile.pl", words[0], "/probes/stop", *words[1:])

        def run() -> None:
            self.lines += inside(twofold, name, *command).splitlines()

        self._thread = threading.Thread(target=run)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.touch()
        self._thread.join(60)

    def starting(self, *words: str) -> list[str]:
        return [line for line in self.lines if line.startswith(words)]

    def count(self, word: str) -> int:
        return int(self.starting(word)[0].split()[1])
