"""A keeper from before an update: it hands everything that runs to the newer code, live."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cleanup
import keeper_lab
import pytest
from keeper_lab import Lab, until

import twofold
from twofold.model.paths import Paths
from twofold.runtime import client as client_module
from twofold.runtime import fingerprint, handoff
from twofold.runtime.client import KeeperClient

BEAT = "i=0; until [ -e /stop ]; do i=$((i+1)); echo beat $i; sleep 0.02; done; exit 9"


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    found = Paths(str(tmp_path))
    os.makedirs(found.run, mode=0o711)
    os.makedirs(found.cache)
    yield found
    assert not cleanup.remove_root(found.root)


@pytest.fixture
def lab(tmp_path: Path, shared: Path) -> Iterator[Lab]:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    with keeper_lab.lab(tmp_path, tarball) as opened:
        yield opened


@pytest.fixture
def newer_code(tmp_path: Path) -> tuple[Path, str]:
    """A copy of the package with a change in it, and what its keeper says of itself."""
    newer = tmp_path / "newer"
    shutil.copytree(Path(twofold.__file__).parent, newer / "twofold")
    with open(newer / "twofold/runtime/keeper.py", "a") as file:
        file.write("# newer\n")
    code = subprocess.run(
        [sys.executable, "-c", "from twofold.runtime import fingerprint as f; print(f.of_code())"],
        env={**os.environ, "PYTHONPATH": str(newer)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return newer, code


async def connect(paths: Paths) -> tuple[int, list[str]]:
    """As a daemon does: the pid of the keeper that answers then, and the warnings."""
    client = await KeeperClient.connect(paths)
    try:
        return int((await client.call("hello"))["pid"]), client.warnings
    finally:
        client.close()


def reconnect(lab: Lab) -> None:
    lab.socket.close()
    lab.socket = lab.connect()


async def test_an_idle_keeper_of_older_code_is_replaced(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await connect(paths)
    assert await connect(paths) == (first, [])
    monkeypatch.setattr(fingerprint, "of_code", lambda: "of an update")
    second, warnings = await connect(paths)
    assert second != first
    assert not warnings


async def test_an_idle_one_that_cannot_hand_over_is_replaced_too(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await connect(paths)
    monkeypatch.setattr(fingerprint, "of_code", lambda: "of an update")
    monkeypatch.setattr(handoff, "FORMAT", -1)
    second, warnings = await connect(paths)
    assert second != first
    assert not warnings


@pytest.mark.shared
async def test_what_runs_goes_on_in_the_newer_code(
    lab: Lab, newer_code: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, code = newer_code
    lab.start(lab.plan("beats", "sh", "-c", BEAT))
    until(lambda: "beat 3\n" in lab.log("beats"))
    before = lab.call("hello")
    assert code != before["code"]
    monkeypatch.setattr(fingerprint, "of_code", lambda: code)
    monkeypatch.setenv("PYTHONPATH", str(newer))
    pid, warnings = await connect(lab.paths)
    assert not warnings
    reconnect(lab)
    after = lab.call("hello")
    assert (after["pid"], after["code"], after["holder"]) == (pid, code, before["holder"])
    assert after["instances"] == before["instances"]
    count = lab.log("beats").count("beat")
    until(lambda: lab.log("beats").count("beat") > count + 3)
    keeper_lab.replace_keeper(lab)  # and that one has a holder, too
    assert lab.call("hello")["code"] == code
    assert lab.execute("beats", "touch", "/stop")[0] in (0, 137)
    assert lab.event("exit")["exit_code"] == 9
    lines = lab.log("beats").splitlines()
    assert lines == [f"beat {number}" for number in range(1, len(lines) + 1)]
    lab.call("release", id="beats")


@pytest.mark.shared
@pytest.mark.parametrize("fault", ["broken code", "no interpreter", "another format"])
async def test_what_cannot_be_upgraded_goes_on_as_it_is(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    lab.start(lab.plan("stays", "sleep", "100"))
    before = lab.call("hello")
    monkeypatch.setattr(fingerprint, "of_code", lambda: "of an update")
    if fault == "broken code":
        (tmp_path / "broken/twofold").mkdir(parents=True)
        (tmp_path / "broken/twofold/__init__.py").write_text("raise SystemExit(3)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    elif fault == "no interpreter":
        monkeypatch.setattr(client_module.sys, "executable", "/no/such/python")
    else:
        monkeypatch.setattr(handoff, "FORMAT", -1)
    pid, warnings = await connect(lab.paths)
    assert pid == before["pid"]
    assert len(warnings) == 1
    assert "another version" in warnings[0]
    assert lab.execute("stays", "true")[0] == 0
    lab.call("kill", id="stays")
    lab.event("exit")
    lab.call("release", id="stays")


@pytest.mark.shared
async def test_what_is_just_starting_is_waited_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = lab.plan("starts", "sleep", "100")
    assert "ok" in lab.create(plan)
    monkeypatch.setattr(fingerprint, "of_code", lambda: "of an update")
    _, warnings = await connect(lab.paths)
    assert "just being started" in warnings[0]
    assert "ok" in lab.call("start", id="starts")
    pid, warnings = await connect(lab.paths)
    assert not warnings
    reconnect(lab)
    assert lab.call("hello")["pid"] == pid
    lab.call("kill", id="starts")
    lab.event("exit")
    lab.call("release", id="starts")
