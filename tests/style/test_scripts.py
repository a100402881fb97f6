"""Shell scripts parse, stop at the first failure and can be executed."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from source import CLONE

SCRIPTS = [
    path
    for directory in ("scripts", "bench", ".ci")
    for path in sorted((CLONE / directory).iterdir())
    if path.is_file() and path.read_bytes().startswith(b"#!")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(CLONE)))
def test_script_is_sound(script: Path) -> None:
    assert os.access(script, os.X_OK), "not executable"
    if script.read_text().splitlines()[0].endswith("bash"):
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^set -e?uo pipefail|^exec ", script.read_text(), re.MULTILINE)


def test_setup_lists_each_package_once_with_its_reason() -> None:
    text = (CLONE / "scripts/setup").read_text()
    listing = text.split("RUNTIME_PACKAGES=(", 1)[1].split("\n)", 1)[0].strip().splitlines()
    names = [line.split("#")[0].strip() for line in listing]
    assert names == sorted(set(names))
    assert all("  # " in line or " # " in line for line in listing)
