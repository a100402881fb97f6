"""What a guest with cloud-init is told, and which way a shell goes into it."""

import argparse
import gzip
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twofold.cli import hardware, ways_in
from twofold.cli.arguments import Parser, UsageError
from twofold.cli.commands import create
from twofold.errors import InvalidInput
from twofold.instance import own_os, seed
from twofold.model.instance import InstanceSpec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJNx3Xh4 me@here"


def spec(**wish: Any) -> InstanceSpec:
    return InstanceSpec(image="disk", media="disk", **wish)


def texts(wish: InstanceSpec, *, mac: str = "02:00:00:00:00:01") -> dict[str, str]:
    record: Any = SimpleNamespace(id="3f2a9c0d1e4b5a67", name="my_box", spec=wish, mac=mac)
    return seed.texts(record)


def test_user_key_name_and_network_are_told() -> None:
    told = texts(spec(user="me", ssh_keys=[KEY]))
    meta = json.loads(told["meta-data"])
    assert meta == {"instance-id": "3f2a9c0d1e4b5a67", "local-hostname": "my-box"}
    assert told["user-data"].startswith("#cloud-config\n")
    config = json.loads(told["user-data"].partition("\n")[2])
    assert config["users"][0]["ssh_authorized_keys"] == [KEY]
    assert config["hostname"] == "my-box"
    assert config["ssh_pwauth"] is False
    card = json.loads(told["network-config"])["ethernets"]["card"]
    assert card == {"match": {"macaddress": "02:00:00:00:00:01"}, "dhcp4": True}
    assert "network-config" not in texts(spec(ssh_keys=[KEY]), mac="")


def test_a_file_of_the_users_own_is_passed_on_as_it_is() -> None:
    script = "#!/bin/sh\necho ä\n"
    alone = texts(spec(user_data=script))
    assert alone["user-data"] == script
    assert "vendor-data" not in alone
    both = texts(spec(user_data=script, user="me", ssh_keys=[KEY]))
    assert both["user-data"] == script
    assert both["vendor-data"] == texts(spec(user="me", ssh_keys=[KEY]))["user-data"]


def test_what_is_told_is_the_same_in_yaml_as_in_json() -> None:
    key = KEY + " & * ! | > ' \" % @ ` {} [] , # ? : - \U0001f600 ä"
    told = texts(spec(user="me", ssh_keys=[key]))["user-data"]
    assert "\\u" not in told  # YAML reads two halves of a character as two characters
    assert json.loads(told.partition("\n")[2])["users"][0]["ssh_authorized_keys"] == [key]


@pytest.mark.parametrize(
    "wish",
    [
        {"user": "me"},
        {"user": "a b", "ssh_keys": [KEY]},
        {"user": "x:y", "ssh_keys": [KEY]},
        {"ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]},
        {"ssh_keys": ['ssh-rsa AAAA\x1b"']},
        {"ssh_keys": [KEY + "\x85"]},
        {"ssh_keys": [KEY + "\u2028b"]},
        {"ssh_keys": [KEY + "\x7f"]},
        {"ssh_keys": [""]},
    ],
)
def test_what_could_not_come_true_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        own_os.check(spec(**wish))


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\npackages: [git]\n",
        "#Cloud-Config\n",
        "\n  #cloud-config\n",
        "#cloud-config-archive\n- type: text/cloud-config\n",
        "#cloud-boothook\n",
        "#!/bin/sh\n",
        "#include\nhttps://example.org/more\n",
        "#include-once https://example.org/more\n",
        "#part-handler\n",
        "## template: jinja\n#cloud-config\n",
        'Content-Type: multipart/mixed; boundary="x"\nMIME-Version: 1.0\n\n--x\n',
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n--x\n",
        "#ps1_sysnative\n",
        "rem cmd\n",
    ],
)
def test_user_data_that_somebody_inside_knows_is_taken(text: str) -> None:
    seed.check_user_data(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (Path("/etc/passwd").read_text(), "'root:x:0:0"),
        ("packages:\n- git\n", "'packages:'"),
        ("# cloud-config\n", "'# cloud-config'"),
        ("\ufeff#cloud-config\n", r"'\\ufeff#cloud-config'"),  # cloud-init leaves the mark there
        ('Content-Type: multipart/mixed; boundary="x"\n\n--x\n', "Content-Type"),
        ("a" * 5000 + "MIME-Version: 1.0", "'a{40}'"),
        ("", "is empty"),
        (" \n", "is empty"),
    ],
)
def test_user_data_that_would_be_ignored_is_refused(text: str, found: str) -> None:
    with pytest.raises(InvalidInput, match=found) as caught:
        seed.check_user_data(text)
    assert "#cloud-config" in caught.value.hint


def _said(path: Path) -> str:
    parser = Parser("create", "")
    create.configure(parser)
    args = parser.parse(["--user-data", str(path), "debian"], argparse.Namespace())
    return str(hardware.build(args)["user_data"])


def test_a_compressed_file_is_unpacked_before_it_is_sent(tmp_path: Path) -> None:
    text = "#!/bin/sh\necho ä\n"
    path = tmp_path / "told"
    path.write_bytes(gzip.compress(text.encode()))
    assert _said(path) == text
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert _said(path) == text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (gzip.compress(b"#cloud-config\n")[:-9], "cannot unpack"),
        (gzip.compress(b"#cloud-config\n")[:-4] + b"wxyz", "cannot unpack"),
        (b"\x1f\x8b", "cannot unpack"),
        (gzip.compress(bytes(1 << 26)), "longer than 256 KiB"),
        (gzip.compress(b"\xff"), "no text in UTF-8"),
    ],
)
def test_a_damaged_or_huge_compressed_file_is_refused(
    content: bytes, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "told"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=why) as caught:
        _said(path)
    assert str(path) in caught.value.hint


def test_the_disc_is_the_last_drive_and_there_only_when_asked_for() -> None:
    drives = own_os.drives(spec(ssh_keys=[KEY]), "/d")
    assert [drive.kind for drive in drives] == ["disk", "cdrom", "seed"]
    assert [drive.path for drive in drives] == ["/d/disk-0.img", "", "/d/seed.iso"]
    assert [drive.path for drive in own_os.drives(spec(), "/d")] == ["/d/disk-0.img", ""]


def test_the_disc_is_one_that_cloud_init_finds(tmp_path: Path) -> None:
    if shutil.which("xorriso") is None:
        pytest.skip("xorriso is not installed: scripts/setup")
    path = str(tmp_path / "seed.iso")
    files = texts(spec(ssh_keys=[KEY]))
    seed.write(path, files)
    seed.write(path, files)  # anew at every start
    assert [one.name for one in tmp_path.iterdir()] == ["seed.iso"]
    volume = Path(path).read_bytes()[0x8000:0x8800]
    assert volume[1:6] == b"CD001"
    assert volume[40:72].strip() == b"CIDATA"
    words = ["xorriso", "-osirrox", "on", "-indev", path, "-extract", "/", str(tmp_path / "out")]
    subprocess.run(words, check=True, capture_output=True)
    for name, content in files.items():
        assert (tmp_path / "out" / name).read_text() == content


def test_agent_then_ssh_then_console() -> None:
    silent: dict[str, Any] = {"id": "3f", "address": "10.1.2.3", "spec": {"user": "me"}}
    answering = {**silent, "guest": {"agent": "7.2"}}
    assert ways_in.choose(answering, tty=False, ssh=True)[0] == "agent"
    assert ways_in.choose(answering, tty=True, ssh=True)[0] == "ssh"
    assert ways_in.choose(silent, tty=False, ssh=True)[0] == "ssh"
    assert ways_in.choose(answering, tty=True, ssh=False)[0] == "console"
    command = ways_in.ssh_command(silent, None, None, tty=False)
    assert command[-5:] == ["-T", "-l", "me", "--", "10.1.2.3"]
    assert "HostKeyAlias=twofold-3f" in command
    assert ways_in.ssh_command(silent, "you", "/a'b", tty=True)[-1].startswith("cd '/a'\\''b' &&")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n", "private key"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "private key"),
        (b"PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nc2VjcmV0\n", "private key"),
        (b"c2VjcmV0\n", "no public SSH key"),
        (b"# nothing\n\n", "no public SSH key"),
        (b"\x00\xff\xfe", "no text in UTF-8"),
        (b"ssh-rsa " + b"A" * (1 << 18), "longer than"),
    ],
)
def test_a_file_that_is_no_public_key_is_not_sent_to_the_daemon(
    content: bytes, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "id"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=why) as caught:
        hardware.public_keys(str(path))
    assert "c2VjcmV0" not in caught.value.message
    path.write_text(f"# mine\n{KEY}\n")
    assert hardware.public_keys(str(path)) == [KEY]
