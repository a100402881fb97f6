"""What a whole ``twofold-oci run`` loads: the budget is 1.3 times runc."""

import json
import subprocess
import sys
from pathlib import Path

import twofold

# Each of these costs milliseconds, alone or by what it pulls in.
HEAVY = {
    "argparse",
    "array",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "inspect",
    "json",
    "pathlib",
    "re",
    "shutil",
    "signal",
    "site",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "typing",
}
MODULES_LIMIT = 85
PROGRAM = """
import sys
sys.path.insert(0, {source!r})
import twofold.oci.main, twofold.oci.commands.run, twofold.runtime.device_filter
from twofold.oci import init
import os
os.write(1, repr(sorted(sys.modules)).encode())
"""


def test_run_loads_what_it_needs_and_no_more() -> None:
    program = PROGRAM.format(source=str(Path(twofold.__file__).parents[1]))
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    loaded = set(json.loads(done.stdout.decode().replace("'", '"')))
    assert not loaded & HEAVY
    ours = {name for name in loaded if name.startswith("twofold")}
    assert len(ours) <= MODULES_LIMIT, sorted(ours)
