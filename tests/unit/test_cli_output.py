"""What a human sees: escaped names, ages, tables, progress; and what scripts see."""

import io
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_twofold import FakeTwofold, chunked, instance, reply
from hypothesis import given
from hypothesis import strategies as st

from twofold.cli import output, progress
from twofold.cli.commands.logs import where_else


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTwofold]:
    server = FakeTwofold(tmp_path)
    yield server
    server.close()


@given(st.text())
def test_escaped_text_has_no_control_characters(text: str) -> None:
    assert output.escape(text).isprintable()


def test_escape_leaves_words_alone() -> None:
    assert output.escape("größe web-1") == "größe web-1"
    assert output.escape("\x1b]0;own\x07\x9b2J\u202e") == "\\x1b]0;own\\x07\\x9b2J\\u202e"


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)))
def test_times(moment: datetime) -> None:
    stamp = moment.isoformat() + "Z"
    expected = moment.replace(tzinfo=UTC).timestamp()
    assert abs(output.parse_time(stamp) - expected) < 1e-3


@pytest.mark.parametrize(
    ("elapsed_s", "expected"),
    [
        (0, "just now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400 * 3, "3 days ago"),
        (-5, "just now"),
    ],
)
def test_ages(elapsed_s: int, expected: str) -> None:
    now = output.parse_time("2026-01-31T10:00:00Z")
    assert output.age("2026-01-31T10:00:00Z", now=now + elapsed_s) == expected


def test_an_unreadable_time_is_shown_as_it_is() -> None:
    assert output.age("yesterday") == "yesterday"
    assert output.age(None) == "-"


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (250 << 20, "250 MiB"), (3 << 41, "6.0 TiB")],
)
def test_sizes(size_bytes: int, expected: str) -> None:
    assert output.human_size(size_bytes) == expected


def test_quote() -> None:
    assert output.quote(["sh", "-c", "echo it's", ""]) == "sh -c 'echo it'\"'\"'s' ''"


def test_list(fake: FakeTwofold) -> None:
    many = [
        instance(
            "web",
            address="10.209.0.5",
            spec={
                "command": ["apache2ctl", "-D", "FOREGROUND"],
                "ports": [{"host_ip": "0.0.0.0", "host_port": 8080, "guest_port": 80}],
            },
        ),
        instance("\x1b[2Jevil", state="stopped", exit_code=3, spec={"isolation": "vm"}),
        instance("hog", state="stopped", exit_code=137, oom_killed=True),
    ]
    fake.replies["GET", "/v1/instances?all=true"] = lambda: iter([reply(many)])
    lines = fake.run("list").stdout.decode().splitlines()
    assert lines[0].split() == [
        "NAME", "STATE", "ISOLATION", "IMAGE", "COMMAND", "ADDRESS", "PORTS", "CREATED",
    ]  # fmt: skip
    assert "apache2ctl -D FOREGROUND  10.209.0.5  8080:80" in lines[1]
    assert lines[2].startswith("\\x1b[2Jevil")
    assert "stopped (3)" in lines[2]
    assert "stopped (out of memory)" in lines[3]
    assert fake.run("list", "-q").stdout == b"web\n\\x1b[2Jevil\nhog\n"
    assert fake.run("ps", "--running", "-q").stdout == b"web\n"
    assert json.loads(fake.run("list", "--json").stdout) == many


def test_show(fake: FakeTwofold) -> None:
    one = instance(
        "web",
        warnings=["no CAP_SYS_RESOURCE"],
        isolation_facts={"id_range": [65536, 131071], "shared": True},
        spec={"memory_bytes": 512 << 20, "volumes": [{"source": "/a", "target": "/b"}]},
    )
    kept = {"name": "warm", "size_bytes": 1 << 20, "consistency": "memory", "created_at": "?"}
    fake.replies["GET", "/v1/instances/web"] = lambda: iter([reply(one)])
    path = f"/v1/instances/{one['id']}/snapshots"
    fake.replies["GET", path] = lambda: iter([reply([kept])])
    text = fake.run("show", "web").stdout.decode()
    for expected in ("id range: 65536 to 131071", "/a:/b", "512 MiB", "no CAP_SYS_RESOURCE", "yes"):
        assert expected in text
    assert "warm, 1.0 MiB, memory" in text


@pytest.mark.parametrize(
    ("state", "shown"),
    [("paused", "state: paused (no room)\n"), ("stopped", "state: stopped\nerror: no room\n")],
)
def test_show_says_once_why(fake: FakeTwofold, state: str, shown: str) -> None:
    one = instance("web", state=state, error="no room")
    fake.replies["GET", "/v1/instances/web"] = lambda: iter([reply(one)])
    path = f"/v1/instances/{one['id']}/snapshots"
    fake.replies["GET", path] = lambda: iter([reply([])])
    text = fake.run("show", "web").stdout.decode()
    assert shown in text.replace("  ", "")
    assert text.count("no room") == 1


@pytest.mark.parametrize(
    ("spec", "points"),
    [
        ({"isolation": "vm", "system": True}, True),
        ({"isolation": "vm", "system": False}, False),
        ({"isolation": "container", "system": True}, False),
    ],
)
def test_where_a_machine_whose_console_is_silent_keeps_its_log(
    spec: dict[str, Any], *, points: bool
) -> None:
    assert ("twofold exec box journalctl" in where_else({"spec": spec}, "box")) is points


def test_logs_go_back_to_their_streams_byte_for_byte(fake: FakeTwofold) -> None:
    lines = (
        b"2026-01-31T10:00:00.5Z stdout F one\n"
        b"2026-01-31T10:00:01.5Z stderr F  \xff two \n"
        b"2026-01-31T10:00:02.5Z stdout F \n"
        b"2026-01-31T10:00:03.5Z stdout P half"
    )
    fake.replies["GET", "/v1/instances/web/logs"] = lambda: chunked(lines[:50], lines[50:])
    done = fake.run("logs", "web")
    assert (done.stdout, done.stderr) == (b"one\n\nhalf", b" \xff two \n")
    done = fake.run("logs", "web", "--since", "2026-01-31T10:00:02Z", "--timestamps")
    assert done.stdout == b"2026-01-31T10:00:02.5Z \n2026-01-31T10:00:03.5Z half"
    done = fake.run("logs", "web", "--json")
    assert json.loads(done.stdout.splitlines()[1])["content"] == " \N{REPLACEMENT CHARACTER} two "
    assert fake.run("logs", "web", "--since", "soon").returncode == 2


def test_doctor(fake: FakeTwofold) -> None:
    facts = [
        {"name": "kvm", "status": "degraded", "reason": "2 M/s", "fix": "use TCG"},
        {"name": "overlay", "status": "ok", "reason": "there", "fix": ""},
    ]
    fake.replies["GET", "/v1/doctor"] = lambda: iter([reply(facts)])
    done = fake.run("doctor")
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "degraded  kvm      2 M/s",
        "                   fix: use TCG",
        "ok        overlay  there",
        "",
        "1 ok, 1 degraded, 0 missing",
    ]
    facts.append({"name": "nft", "status": "missing", "required": True, "reason": "", "fix": "x"})
    assert fake.run("doctor").returncode == 1


def test_several_names_and_one_failure(fake: FakeTwofold) -> None:
    fake.replies["POST", "/v1/instances/a/pause"] = lambda: iter([reply(instance("a"))])
    done = fake.run("pause", "a", "gone")
    assert done.returncode == 125
    assert done.stdout == b"a\n"
    assert done.stderr == (b"twofold: error: no /v1/instances/gone/pause\nhint: twofold list\n")


def test_errors_of_a_guest_cannot_drive_the_terminal(fake: FakeTwofold) -> None:
    error = {"code": "guest_failed", "message": "last lines:\n\x1b]0;x\x07boot", "hint": "\x9b2J"}
    fake.replies["GET", "/v1/instances/x"] = lambda: iter([reply({"error": error}, status=500)])
    done = fake.run("show", "x")
    assert done.stderr.decode() == (
        "twofold: error: last lines:\n\\x1b]0;x\\x07boot\nhint: \\x9b2J\n"
    )
    as_json = json.loads(fake.run("--json", "show", "x").stderr)
    assert as_json["error"]["message"] == error["message"]


def test_completion(fake: FakeTwofold) -> None:
    fake.replies["GET", "/v1/instances?all=true"] = lambda: iter([reply([instance("web")])])
    images = [{"names": ["debian:trixie"]}]
    fake.replies["GET", "/v1/images"] = lambda: iter([reply(images)])

    def found(*words: str) -> list[str]:
        lines = fake.run("__complete", *words).stdout.decode().splitlines()
        return [line.split("\t")[0] for line in lines]

    assert {"run", "list", "image"} <= set(found(""))
    assert found("do") == ["doctor"]
    assert found("image", "b") == ["build"]
    assert found("run", "--isol") == ["--isolation"]
    assert found("run", "--isolation", "") == ["container", "vm"]
    assert found("run", "-m", "") == []
    assert found("run", "--rm", "deb") == ["debian:trixie"]
    assert found("run", "debian", "") == []
    assert found("exec", "-it", "") == ["web"]
    assert found("stop", "x", "w") == ["web"]
    assert found("image", "rm", "d") == ["debian:trixie"]
    assert found("completion", "") == ["bash", "zsh", "fish"]
    assert found("--root", "/x", "lis") == ["list"]
    assert found("nonsense", "") == []


class Screen(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def step(status: str, **more: Any) -> dict[str, Any]:
    shown = {"index": 0, "title": "Unpack", "status": status, "elapsed_s": 0.0, **more}
    return {"type": "step", "step": shown}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.Progress()
    shown.event(step("running"))
    assert screen.getvalue() == ""  # quick steps are not shown
    clock[0] += 0.5
    shown.event(step("running", progress=0.43, message="12 MB"))
    assert "Unpack 43 % · 12 MB  0.5 s" in screen.getvalue()
    shown.event(step("done", elapsed_s=0.6))
    assert screen.getvalue().endswith("\r\x1b[K✓ Unpack  0.6 s\n")
    assert "\x1b[3" not in screen.getvalue()


def test_progress_elsewhere(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    shown = progress.Progress()
    shown.event(step("running"))
    shown.event(step("done", elapsed_s=0.9))
    assert screen.getvalue() == ""
    shown.event(step("running"))
    clock[0] += 1.1
    shown.tick()
    shown.tick()
    shown.event(step("done", elapsed_s=2.0))
    assert screen.getvalue() == "Unpack …\nUnpack: done in 2.0 s\n"


def test_quiet_progress_still_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    shown = progress.Progress(quiet=True)
    shown.event(step("running"))
    shown.event(step("done", elapsed_s=5.0))
    shown.event({"type": "warning", "message": "no KVM", "hint": "twofold doctor"})
    assert screen.getvalue() == "twofold: warning: no KVM\nhint: twofold doctor\n"
