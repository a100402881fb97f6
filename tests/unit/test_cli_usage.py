"""``set``, ``top`` and ``stats`` as commands: what they send and what they draw."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_twofold import FakeTwofold, instance, ndjson, reply

from twofold.cli import main
from twofold.cli.arguments import UsageError
from twofold.cli.commands import set as set_command
from twofold.cli.output import clock


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTwofold]:
    server = FakeTwofold(tmp_path)
    yield server
    server.close()


def use(**more: Any) -> dict[str, Any]:
    return {
        "id": "3f2a9c0d1e4b5a67",
        "name": "web",
        "isolation": "container",
        "state": "running",
        "at": "2026-01-31T10:00:00Z",
        "clock_s": 10.0,
        "cpu_s": 1.0,
        "memory_bytes": 50 << 20,
        "cache_bytes": 10 << 20,
        "memory_limit_bytes": 100 << 20,
        "pids": 3,
        "pids_limit": 200,
        "network_received_bytes": 1000,
        "network_sent_bytes": 0,
        "disk_read_bytes": None,
        "disk_written_bytes": None,
        "guest": None,
        **more,
    }


def test_words_become_a_request() -> None:
    words = ["cpus=1.5", "memory=1g", "pids=none", "restart=on-failure:3"]
    assert set_command.changes(words) == {
        "cpus": 1.5,
        "memory_bytes": 1 << 30,
        "pids": None,
        "restart": "on-failure:3",
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cpu=1", "'cpu' cannot be set"),
        ("memory=1", "at least 4m"),
        ("memory=lots", "is not a size"),
        ("pids=0", "not a positive whole number"),
        ("pids=1_0", "not a positive whole number"),
        ("cpus=-1", "not a number of CPUs"),
        ("restart=none", "is not known"),
        ("memory=", "is not a size"),
    ],
)
def test_wrong_words_are_named(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        set_command.changes([word])


def test_what_to_type_names_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    for words, hint in (
        (("set", "web", "memory=lots"), "twofold set web memory=1g"),
        (("set", "web"), "twofold set web memory=1g"),
        (("plug", "web", "--disk", "image:x"), "twofold plug --help"),
        (("unplug", "web", "--disk", "-1"), "twofold unplug --help"),
    ):
        assert main.run([*words]) == 2, words
        assert f"hint: {hint}\n" in capsys.readouterr().err


def test_set_sends_one_change_per_name_and_shows_what_waits(fake: FakeTwofold) -> None:
    warning = {"type": "warning", "message": "keeps its memory", "hint": "twofold restart b"}
    result = {"type": "result", "result": instance()}
    for name in "ab":
        fake.replies["PATCH", f"/v1/instances/{name}"] = lambda: ndjson(warning, result)
    done = fake.run("set", "a", "b", "memory=64m")
    assert done.returncode == 0
    assert done.stdout == b"a\nb\n"
    assert done.stderr.count(b"keeps its memory") == 2
    assert [one for one in fake.requests if one[0] == "PATCH"] == [
        ("PATCH", f"/v1/instances/{name}", {"memory_bytes": 64 << 20}) for name in "ab"
    ]
    assert fake.run("set", "a").returncode == 2
    assert fake.run("set", "memory=64m").returncode == 2


def test_top_is_a_table(fake: FakeTwofold) -> None:
    process = {
        "pid": 7,
        "parent": 1,
        "user": "www-data",
        "state": "S",
        "cpu_s": 61.5,
        "age_s": 3700.0,
        "memory_bytes": 2 << 20,
        "command": "evil\x1b]0;title",
    }
    fake.replies["GET", "/v1/instances/web/processes"] = lambda: iter([reply([process])])
    done = fake.run("top", "web")
    line = done.stdout.decode().splitlines()[1]
    assert line.split()[:6] == ["7", "1", "www-data", "S", "1:01", "2.0"]
    assert "1:01:40" in line
    assert r"evil\x1b]0;title" in line
    assert json.loads(fake.run("top", "web", "--json").stdout) == [process]


def test_rates_are_the_difference_of_two_samples(fake: FakeTwofold) -> None:
    samples = [
        use(),
        use(clock_s=12.0, cpu_s=2.0, network_received_bytes=3048, network_sent_bytes=-5),
    ]
    fake.replies["GET", "/v1/usage?name=web"] = lambda: iter([reply([samples.pop(0)])])
    (shown,) = json.loads(fake.run("stats", "web", "--no-stream", "--json").stdout)
    assert shown["cpu_percent"] == 50.0
    assert shown["network_received_bytes_per_s"] == 1024.0
    assert shown["network_sent_bytes_per_s"] == 0.0
    assert shown["disk_read_bytes_per_s"] is None


def test_a_machine_shows_its_guests_memory_and_its_cost(fake: FakeTwofold) -> None:
    guest = {"memory_bytes": 80 << 20, "memory_total_bytes": 460 << 20, "processes": 5}
    machine = use(isolation="vm", guest=guest, memory_bytes=390 << 20, pids=4, pids_limit=None)
    silent = use(isolation="vm", id="0" * 16, name="mute", guest=None, pids_limit=None)
    fake.replies["GET", "/v1/usage"] = lambda: iter([reply([machine, silent])])
    table = fake.run("stats", "--no-stream").stdout.decode().splitlines()
    assert table[1].split("  ")[:1] == ["web"]
    assert all(text in table[1] for text in ("80 MiB", "460 MiB", "400 MiB"))
    assert table[1].split()[table[1].split().index("400") + 2] == "5"
    assert "-" in table[2].split()


def test_stats_go_on_until_interrupted(fake: FakeTwofold) -> None:
    fake.replies["GET", "/v1/usage"] = lambda: iter([reply([use()])])
    command = subprocess.Popen(
        fake.command("stats", "--interval", "0.1"), stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    tables = 0
    for line in command.stdout:
        tables += line.startswith("NAME")
        if tables == 3:
            break
    command.send_signal(signal.SIGINT)
    command.stdout.read()
    assert command.wait() == 130


@pytest.mark.parametrize(
    ("elapsed_s", "shown"),
    [(0.9, "0:00"), (61, "1:01"), (3661, "1:01:01"), (90061, "1d 01:01")],
)
def test_clock(elapsed_s: float, shown: str) -> None:
    assert clock(elapsed_s) == shown


def test_rm_by_force_names_only_what_it_removed(fake: FakeTwofold) -> None:
    gone = {"error": {"code": "not_found", "message": "no instance 'nosuch'", "hint": ""}}
    fake.replies["DELETE", "/v1/instances/nosuch?force=true"] = lambda: iter(
        [reply(gone, status=404)]
    )
    fake.replies["DELETE", "/v1/instances/web?force=true"] = lambda: ndjson(
        {"type": "result", "result": None}
    )
    done = fake.run("rm", "-f", "nosuch", "web")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"web\n", b"")
    done = fake.run("--json", "rm", "-f", "nosuch", "web")
    assert (done.returncode, json.loads(done.stdout)) == (0, [{"name": "web"}])


def test_of_a_request_that_the_command_wrote_wrongly_the_user_is_told_its_help(
    fake: FakeTwofold,
) -> None:
    error = {"code": "invalid_input", "message": "pids: too small", "hint": "see GET /openapi.json"}
    for details, hint in (({"shapes": "/openapi.json"}, "twofold {} --help"), ({}, "see GET")):
        answer = reply({"error": {**error, "details": details}}, status=400)
        for verb, method in (("rm", "DELETE"), ("show", "GET")):  # of several names, and of one
            fake.replies[method, "/v1/instances/web"] = lambda answer=answer: iter([answer])
            done = fake.run(verb, "web")
            assert done.returncode == 125
            assert hint.format(verb) in done.stderr.decode()
