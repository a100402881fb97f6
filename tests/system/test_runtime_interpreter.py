"""A process that has left its interpreter's file goes on, and leads to nothing writable."""

import subprocess
import sys
from pathlib import Path

import pytest

import twofold

pytestmark = pytest.mark.system

PROGRAM = """
import os, sys
sys.path.insert(0, {source!r})
from twofold.runtime import interpreter
file = os.readlink("/proc/self/exe")
assert file in open("/proc/self/maps").read()
if {leave}:
    interpreter.let_go()
    assert os.path.getsize("/proc/self/exe") == 0
    # Mapped still, but from a read-only mount that is in no namespace.
    for line in open("/proc/self/maps"):
        if file in line:
            try:
                os.close(os.open("/proc/self/map_files/" + line.split()[0], os.O_RDWR))
            except OSError as error:
                assert error.errno in (30, 26), error
            else:
                raise AssertionError(line)
    # All of it still works: code, data, relocations, new modules, children.
    import asyncio, decimal, email.message, json
    assert sum(json.loads(json.dumps(list(range(1000))))) == 499500
    assert asyncio.run(asyncio.sleep(0, 7)) == 7
pid = os.fork()
if pid == 0:
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
print(os.readlink("/proc/self/exe"))
"""


def run(*, leave: bool) -> str:
    source = str(Path(twofold.__file__).parents[1])
    program = PROGRAM.format(source=source, leave=leave)
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_leaves_and_lives_on() -> None:
    for _ in range(10):
        assert run(leave=True).startswith("/memfd:")


def test_without_leaving_it_leads_to_the_interpreter() -> None:
    assert run(leave=False) == str(Path(sys.executable).resolve())
