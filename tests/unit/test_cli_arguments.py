"""What a command line means: values, the split between our words and the payload's, examples."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.api.replies import invalid_input
from twofold.cli import arguments, main, spec
from twofold.cli.arguments import UsageError
from twofold.errors import InvalidInput

EXAMPLES = [(verb, example) for verb in main.VERBS for example in main.load(verb)[0].EXAMPLES]


def parse(line: str) -> argparse.Namespace:
    verb, rest = main.find_verb(shlex.split(line))
    return main.load(verb)[1].parse(rest, argparse.Namespace(root=None, json=False))


def spec_of(line: str) -> dict[str, Any]:
    return spec.build(parse(line))


@pytest.mark.parametrize(("verb", "example"), EXAMPLES)
def test_every_example_parses(
    verb: str, example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    for part in example.replace("$(", "| ").replace(")", "").split("|"):
        words = shlex.split(part.split(">")[0])
        if words[0] != "twofold":
            continue
        found, rest = main.find_verb(main._global_options(words[1:], argparse.Namespace()))
        args = main.load(found)[1].parse(rest, argparse.Namespace(root=None, json=False))
        if found in ("run", "create"):
            spec.build(args)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        *(
            (f"{verb} ''", "NAME is empty")
            for verb in ("show", "rm", "rm -f", "stop", "exec", "logs")
        ),
        ("rm web ''", "NAME is empty"),
        ("snapshot rm web ''", "SNAPSHOT is empty"),
        ("snapshot create web ''", "SNAPSHOT is empty"),
        ("template rm ''", "KEY is empty"),
        ("image show ''", "IMAGE is empty"),
        ("rm web/snapshots/snap-1", "'web/snapshots/snap-1' is no NAME: it has a slash"),
        ("show web/snapshots", "'web/snapshots' is no NAME: it has a slash"),
        ("snapshot rm web a/restore", "'a/restore' is no SNAPSHOT: it has a slash"),
        ("set web/start cpus=1", "'web/start' is no NAME: it has a slash"),
    ],
)
def test_what_is_no_name_is_refused_before_any_request(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line)
    assert caught.value.message == said
    assert caught.value.hint.startswith("twofold ")


def test_names_of_images_and_changes_have_slashes() -> None:
    assert parse("image rm docker.io/library/x:1").names == ["docker.io/library/x:1"]
    assert parse("set box cdrom=/tmp/a.iso").names == ["box", "cdrom=/tmp/a.iso"]


def test_every_verb_has_examples_and_help() -> None:
    for verb, (_, help_line) in main.VERBS.items():
        module, parser = main.load(verb)
        assert module.EXAMPLES, verb
        text = parser.format_help()
        assert all(example in text for example in module.EXAMPLES)
        assert help_line[0].islower()
        assert not help_line.endswith(".")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", 512),
        ("512b", 512),
        ("1k", 1024),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("64MB", 64 << 20),
        ("2g", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5g", 1 << 29),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert arguments.size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "g", "-1", "0", "1_0", "\uff11", "1e3", "nan", "5x", "1.2.3", " "]
)
def test_refused_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.size(text)


@given(st.text(max_size=8))
def test_size_never_fails_in_another_way(text: str) -> None:
    try:
        assert arguments.size(text) >= 0
    except argparse.ArgumentTypeError:
        pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", [("0.0.0.0", 8080, 80, "tcp")]),
        ("127.0.0.1:53:5353/udp", [("127.0.0.1", 53, 5353, "udp")]),
        ("[::1]:8080:80/tcp", [("::1", 8080, 80, "tcp")]),
        ("8000-8001:80-81", [("0.0.0.0", 8000, 80, "tcp"), ("0.0.0.0", 8001, 81, "tcp")]),
    ],
)
def test_ports(text: str, expected: list[tuple[str, int, int, str]]) -> None:
    assert [tuple(port.values()) for port in _reordered(arguments.ports(text))] == expected


def _reordered(ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("host_ip", "host_port", "guest_port", "protocol")
    return [{key: port[key] for key in keys} for port in ports]


@pytest.mark.parametrize(
    "text",
    ["80", "0:80", "80:65536", "a:b", "1:2:3:4", "1-3:1-2", "3-1:1-3", "80:80/sctp", "[::1:80:80"],
)
def test_refused_ports(text: str) -> None:
    with pytest.raises(UsageError):
        arguments.ports(text)


def test_a_bare_port_gets_the_reason_and_the_way() -> None:
    with pytest.raises(UsageError, match="does not choose") as caught:
        arguments.ports("80")
    assert caught.value.hint == "-p 8080:80"


def test_volume_sources_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    found = arguments.volume("./data:/srv:ro")
    assert found == {"source": f"{tmp_path}/data", "target": "/srv", "read_only": True}


def test_a_missing_volume_source_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist") as caught:
        arguments.volume(f"{tmp_path}/nope:/srv")
    assert caught.value.hint == f"mkdir -p {tmp_path}/nope"


@pytest.mark.parametrize("text", ["/tmp", ":/x", "/tmp:", "/tmp:x", "/tmp:/x:rx", "/a:/b:ro:z"])
def test_refused_volumes(text: str) -> None:
    with pytest.raises(UsageError):
        arguments.volume(text)


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "1=2")
    monkeypatch.delenv("NOT_HERE", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=from file\nB=x y\nFROM_HERE\n")
    found = arguments.environment(["A=b", "FROM_HERE", "NOT_HERE", "E="], [str(file)])
    assert found == ["A=from file", "B=x y", "FROM_HERE=1=2", "A=b", "FROM_HERE=1=2", "E="]
    with pytest.raises(UsageError):
        arguments.environment(["=x"], [])
    with pytest.raises(InvalidInput):
        arguments.environment([], [str(tmp_path / "nope")])


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("run debian ls -la --json", ["ls", "-la", "--json"]),
        ("run -it --rm debian bash -c 'a b' -- -x", ["bash", "-c", "a b", "--", "-x"]),
        ("run -e A=b -w /x -m512m --cpus=2 debian", []),
        ("run --name web -- debian --version", ["--version"]),
        ("run -itd debian -i", ["-i"]),
        ("exec -itu 1000 web ps -ef", ["ps", "-ef"]),
        ("exec web --help", ["--help"]),
    ],
)
def test_words_after_the_image_belong_to_the_command(line: str, command: list[str]) -> None:
    assert parse(line).command == command


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("run --memry 1g debian", "unknown option '--memry'", "did you mean --memory?"),
        ("run -name x debian", "-n", ""),
        ("run --foo debian", "unknown option '--foo'", "twofold run --help"),
        ("run --name", "expected one argument", "twofold run --help"),
        ("run --cpus 1_0 debian", "is not a number of CPUs", ""),
        ("run --pids \uff10 debian", "is not a positive whole number", ""),
        ("run --isolation hyperv debian", "invalid choice", ""),
        ("list --jsn", "unknown option '--jsn'", "did you mean --json?"),
        ("list web", "too many words: 'web'", ""),
        ("lits", "unknown verb 'lits'", "did you mean twofold list?"),
        ("image lst", "image verb 'lst'", "twofold image list"),
        ("image", "missing: a verb", "twofold image build"),
    ],
)
def test_usage_errors(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_spec_says_only_what_the_user_said() -> None:
    assert spec_of("run debian") == {"image": "debian"}


def test_spec_of_many_options() -> None:
    line = (
        "run --vm --hardware emulated --name box -e A=1 -w /srv -u www-data -p 8080:80 -v /tmp:/t "
        "--cpus 1.5 -m 1g --pids-limit 99 --network none --hostname h --entrypoint /bin/sh "
        "--restart on-failure:3 -i -t debian -c id"
    )
    assert spec_of(line) == {
        "image": "debian",
        "name": "box",
        "isolation": "vm",
        "hardware": "emulated",
        "command": ["-c", "id"],
        "entrypoint": ["/bin/sh"],
        "env": ["A=1"],
        "workdir": "/srv",
        "user": "www-data",
        "volumes": [{"source": "/tmp", "target": "/t", "read_only": False}],
        "ports": [{"host_ip": "0.0.0.0", "host_port": 8080, "guest_port": 80, "protocol": "tcp"}],
        "cpus": 1.5,
        "memory_bytes": 1 << 30,
        "pids": 99,
        "network": "none",
        "hostname": "h",
        "restart": "on-failure:3",
        "interactive": True,
        "tty": True,
    }


def test_the_spec_is_one_the_api_takes() -> None:
    from twofold.model.instance import InstanceSpec

    InstanceSpec.model_validate(spec_of("run --rm -it --vm -p 1:1 -v /tmp:/t -m 1g debian sh"))


@pytest.mark.parametrize(
    "line",
    [
        "run --hardware emulated debian",
        "run --vm --isolation container debian",
        "run --rm --restart always debian",
        "run --restart sometimes debian",
        "run --restart always:3 debian",
        "run --entrypoint [1] debian",
    ],
)
def test_contradictions(line: str) -> None:
    with pytest.raises(UsageError):
        spec_of(line)


def test_entrypoint_forms() -> None:
    assert arguments.entrypoint("") == []
    assert arguments.entrypoint("/bin/sh") == ["/bin/sh"]
    assert arguments.entrypoint('["sh", "-c"]') == ["sh", "-c"]


def test_terminal_name() -> None:
    assert spec.terminal_environment(["A=1"], "xterm") == ["A=1", "TERM=xterm"]
    assert spec.terminal_environment([], "xterm-kitty") == ["TERM=xterm-256color"]
    assert spec.terminal_environment(["TERM=x"], "linux") == ["TERM=x"]


def test_global_options_stand_on_either_side() -> None:
    args = argparse.Namespace(root=None, json=False)
    assert main._global_options(["--json", "--root", "/x", "list"], args) == ["list"]
    assert (args.root, args.json) == ("/x", True)
    assert parse("list --root /y --json").root == "/y"


def test_root_is_not_taken_from_the_payload() -> None:
    assert parse("run debian ls --root /x").root is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "verbs:"),
        (["help", "run"], 0, "examples:"),
        (["run", "--help"], 0, "-p [IP:]HOST:GUEST[/udp]"),
        (["image", "--help"], 0, "image build"),
        (["--version"], 0, "twofold 0."),
        ([], 2, "usage:"),
    ],
)
def test_help(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(words) == code
    assert said in capsys.readouterr().out


def test_a_usage_error_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--root", os.devnull, "list", "--nope"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "twofold: error: unknown option '--nope'\nhint: twofold list --help\n"


def test_a_hint_for_who_writes_requests_is_not_for_who_types(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = invalid_input([{"loc": ("body", "x"), "msg": "Input is too large", "input": 9}])

    def fail(_: argparse.Namespace) -> int:
        raise refused

    monkeypatch.setattr(main.load("snapshot list")[0], "run", fail)
    assert main.run(["snapshot", "list", "box"]) == 125
    said = "twofold: error: x: input is too large, not 9\nhint: twofold snapshot list --help\n"
    assert capsys.readouterr().err == said


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["list", "--json", "--nope"]) == 2
    assert capsys.readouterr().err.startswith('{"error": {"code": "usage"')


def test_privileges_become_a_specification() -> None:
    words = (
        "run --cap-add NET_RAW --cap-drop ALL --read-only --tmpfs /run:size=64m,mode=755,exec "
        "--tmpfs /tmp --shm-size 128m --ulimit nofile=10:20 --ulimit core=unlimited "
        "--device /dev/fuse --device /dev/a:/dev/b:r --device /dev/c:mr "
        "--security-opt seccomp=unconfined --security-opt no-new-privileges:false debian"
    )
    assert spec_of(words) == {
        "image": "debian",
        "cap_add": ["NET_RAW"],
        "cap_drop": ["ALL"],
        "read_only": True,
        "tmpfs": [
            {"target": "/run", "size_bytes": 64 << 20, "mode": "755", "executable": True},
            {"target": "/tmp"},
        ],
        "shm_bytes": 128 << 20,
        "ulimits": {"nofile": [10, 20], "core": [-1, -1]},
        "devices": [
            {"path": "/dev/fuse"},
            {"path": "/dev/a", "access": "r", "target": "/dev/b"},
            {"path": "/dev/c", "access": "rm"},
        ],
        "seccomp": "unconfined",
        "no_new_privileges": False,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --tmpfs /run:sise=1m debian", "unknown option 'sise=1m'"),
        ("run --tmpfs /run:size=x debian", "is not a size"),
        ("run --ulimit nofile debian", "is not NAME=SOFT"),
        ("run --ulimit nofile=1_0 debian", "is not NAME=SOFT"),
        ("run --device fuse debian", "is not DEVICE"),
        ("run --device /dev/a:/dev/b:/dev/c:rw debian", "is not DEVICE"),
        ("run --security-opt label=disable debian", "is not known"),
        ("run --privileged debian", "there is no option '--privileged'"),
    ],
)
def test_wrong_privileges_are_named(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec_of(words)


def test_with_image_the_first_word_is_the_name(tmp_path: Path) -> None:
    file = tmp_path / "win11.iso"
    file.touch()
    found = spec_of(f"create --vm --image {file} --disk 64g --disk image:data --boot cdrom,disk w")
    assert found == {
        "image": str(file),
        "name": "w",
        "isolation": "vm",
        "disks": [{"size_bytes": 64 << 30}, {"image": "data"}],
        "boot": ["cdrom", "disk"],
    }
    assert spec_of("run --floppy x --device usb:046D:C31C --device pci:01:00.0 --tpm off freedos")[
        "host_devices"
    ] == [{"bus": "usb", "address": "046d:c31c"}, {"bus": "pci", "address": "0000:01:00.0"}]
    assert spec_of("run --device usb:001.004 --device /dev/fuse --sound freedos") == {
        "image": "freedos",
        "host_devices": [{"bus": "usb", "address": "1.4"}],
        "devices": [{"path": "/dev/fuse"}],
        "sound": True,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run", "missing: IMAGE"),
        ("create --image a b c", "one too many"),
        ("create --image a --name b c", "two names"),
        ("create --disk lots a", "not a size"),
        ("create --disk image: a", "names no image"),
        ("create --device usb:046d a", "VENDOR:PRODUCT"),
        ("create --device usb:1.4.2 a", "BUS.DEVICE"),
        ("create --device pci:01:00.0,x=y a", "not like"),
        ("run --hardware emulated debian", "virtual machine"),
    ],
)
def test_what_makes_no_machine(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec_of(line)
