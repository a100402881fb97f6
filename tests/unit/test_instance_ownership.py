"""A container's files for another: what the copying leaves behind when it is cut short."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twofold.errors import NoSpace, RuntimeFailed, TwofoldError, Unsupported
from twofold.instance.ownership import copy_tree
from twofold.storage import trees

COPY = "from twofold.instance.ownership import copy_tree; copy_tree('/source', '/target')"


def test_a_copy_dies_with_the_daemon(tmp_path: Path) -> None:
    """The next daemon cleans up where it would go on writing."""
    told = tmp_path / "told"
    os.mkfifo(told)
    program = tmp_path / "cp"
    program.write_text(f"#!/bin/sh\necho $$ > {told}\nexec sleep 100\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    daemon = subprocess.Popen([sys.executable, "-c", COPY], env=environment)
    copy = os.pidfd_open(int(told.read_text()))
    try:
        daemon.kill()
        daemon.wait()
        assert select.select([copy], [], [], 5)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(copy, signal.SIGKILL)
        os.close(copy)


def test_a_path_that_is_too_long_is_named_as_what_it_is(tmp_path: Path) -> None:
    source = tmp_path / "upper"
    source.mkdir()
    place = os.open(source, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("n" * 200, dir_fd=place)
        deeper = os.open("n" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    with pytest.raises(Unsupported, match=r"path '/n{60}…' is too long.* 4,096 bytes") as caught:
        copy_tree(str(source), str(tmp_path / "copy"))
    assert len(caught.value.message) < 250
    assert "twofold shell NAME" in caught.value.hint
    trees.remove(str(source))
    trees.remove(str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        ("cp: error writing '/t/x': No space left on device", NoSpace, "df -h"),
        ("cp: cannot open '/s/x': Input/output error", RuntimeFailed, "journalctl"),
    ],
)
def test_other_failures_are_what_cp_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kind: type[TwofoldError],
    hint: str,
) -> None:
    program = tmp_path / "cp"
    program.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(kind, match="could not be copied: cp: ") as caught:
        copy_tree("/s", "/t")
    assert caught.value.hint.startswith(hint)
