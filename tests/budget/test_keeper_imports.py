"""What a keeper loads is in memory twice for each root, in the keeper and in its holder."""

import subprocess
import sys

# Each of these, with what it loads in turn, takes 100 kB to a megabyte and a half.
TOO_LARGE = {
    *("argparse", "asyncio", "collections.abc", "contextlib", "dataclasses", "enum", "functools"),
    *("hashlib", "inspect", "json", "logging", "re", "shutil", "signal", "socket", "subprocess"),
    *("tarfile", "tempfile", "threading", "traceback", "typing", "twofold.hypervisor.monitor"),
}


def test_a_keeper_loads_little() -> None:
    script = "import sys; import twofold.daemon.keeper; print(*sys.modules)"
    # -S: what site packages load at every start is not ours to save.
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not TOO_LARGE & set(done.stdout.split())
