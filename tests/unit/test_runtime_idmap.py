"""User namespaces for mounts: the process that makes one and does nothing else."""

import os
import select
import subprocess
import sys

import pytest

MAKE = """
import time
from twofold.runtime import idmap
def write(pid, *maps):
    print(pid, flush=True)
    time.sleep(100)
idmap.write_given_maps = write
idmap.make_namespace(((0, 0, 1),), ((0, 0, 1),))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="user namespaces may be root's alone")
def test_who_waits_in_a_namespace_dies_with_who_asked_for_it() -> None:
    asking = subprocess.Popen([sys.executable, "-c", MAKE], stdout=subprocess.PIPE)
    assert asking.stdout is not None
    waiting = os.pidfd_open(int(asking.stdout.readline()))
    asking.kill()
    asking.wait()
    asking.stdout.close()
    assert select.select([waiting], [], [], 5)[0]
    os.close(waiting)
