"""A container's files for another: what the copying leaves behind when it is cut short."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

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
