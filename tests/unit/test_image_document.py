"""JSON from strangers, configurations, manifests and names: what is refused, and how fast."""

import time
from typing import Any

import pytest
from image_archives import MANIFEST, configuration, descriptor, encoded, tarball

from twofold.errors import InvalidInput, TwofoldError, Unsupported
from twofold.image import config, document, manifest, names


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 100_000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a": 1',
        b"[]",
        b"",
        b"\xff\xfe{}",
        b'"' * 99_999,
        b"{" + b'"\\' * 1_000_000,
        b"{" + b'"' * 4_000_000,
        b" " * (document.MAX_BYTES + 1),
    ],
)
def test_hostile_json_is_refused_soon(data: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidInput):
        document.parse(data, "the test")
    assert time.monotonic() - started < 2


def test_a_document_of_exactly_the_limit_is_read() -> None:
    data = b'{"a": "' + b"x" * (document.MAX_BYTES - 9) + b'"}'
    assert len(data) == document.MAX_BYTES
    assert document.parse(data, "the test")
    with pytest.raises(InvalidInput):
        document.parse(data + b" ", "the test")


@pytest.mark.parametrize(("depth", "good"), [(document.MAX_DEPTH, True), (33, False)])
def test_depth_has_a_limit(depth: int, good: bool) -> None:
    data = b'{"a":' * depth + b"1" + b"}" * depth
    if good:
        assert document.parse(data, "the test")
    else:
        with pytest.raises(InvalidInput, match="nested deeper"):
            document.parse(data, "the test")


def test_brackets_inside_strings_do_not_nest() -> None:
    assert document.parse(encoded({"a": "[" * 500 + '\\"' + "{" * 500}), "the test")


def test_a_configuration_as_docker_writes_it() -> None:
    data = configuration(
        [tarball()],
        Entrypoint=None,
        Labels=None,
        WorkingDir="",
        User="www-data",
        ExposedPorts={"80/tcp": {}, "53/udp": {}},
        StopSignal="SIGQUIT",
    )
    found = config.parse(data)
    assert found.architecture == "amd64"
    assert found.process.model_dump() == {
        "entrypoint": [],
        "cmd": ["/bin/sh"],
        "env": ["PATH=/bin"],
        "working_dir": "/",
        "user": "www-data",
        "stop_signal": "SIGQUIT",
        "exposed_ports": ["53/udp", "80/tcp"],
        "labels": {},
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"Env": "PATH=/bin"},
        {"Env": ["NOVALUE"]},
        {"Env": ["=x"]},
        {"Env": ["A=\0"]},
        {"Cmd": [1]},
        {"Cmd": {"a": "b"}},
        {"User": "root\nx"},
        {"WorkingDir": "/a\nb"},
        {"StopSignal": "SIGKILL; rm"},
        {"ExposedPorts": {"80/tcp\n": {}}},
        {"ExposedPorts": ["80"]},
        {"Labels": {"a": 1}},
    ],
)
def test_bad_configurations_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        config.parse(configuration([tarball()], **fields))


def test_other_systems_and_missing_layers_are_refused() -> None:
    with pytest.raises(Unsupported):
        config.parse(encoded({"os": "windows", "architecture": "amd64"}))
    with pytest.raises(InvalidInput):
        config.parse(configuration([]))
    bad = {"type": "layers", "diff_ids": ["sha256:../../x"]}
    with pytest.raises(InvalidInput):
        config.parse(encoded({"os": "linux", "architecture": "amd64", "rootfs": bad}))


def test_a_document_that_is_manifest_and_index_is_refused() -> None:
    item = descriptor(b"x", MANIFEST)
    for value in (
        {"manifests": [item], "layers": [], "config": item},
        {"manifests": [item], "config": item},
        {"schemaVersion": 2},
    ):
        with pytest.raises(InvalidInput):
            manifest.parse(encoded(value))
    with pytest.raises(InvalidInput):  # promised as one thing, says it is another
        manifest.parse(encoded({"mediaType": manifest.OCI_INDEX, "manifests": []}), MANIFEST)
    with pytest.raises(InvalidInput):
        manifest.parse(encoded({"manifests": []}), MANIFEST)


@pytest.mark.parametrize(
    "bad",
    [
        {"digest": "sha256:../../etc/passwd"},
        {"digest": "sha256:" + "A" * 64},
        {"digest": "md5:" + "a" * 32},
        {"digest": "sha256:" + "a" * 64 + "\n"},
        {"size": -1},
        {"size": "1"},
        {"size": True},
        {"size": 1 << 70},
        {"annotations": {"a": 1}},
    ],
)
def test_bad_descriptors_are_refused(bad: dict[str, Any]) -> None:
    item = {**descriptor(b"x", MANIFEST), **bad}
    with pytest.raises(InvalidInput):
        manifest.parse(encoded({"manifests": [item]}))


def test_this_hosts_platform_is_chosen() -> None:
    here = manifest.host_architecture()
    nowhere = {"os": "unknown", "architecture": "unknown"}
    offered = manifest.parse(
        encoded(
            {
                "manifests": [
                    descriptor(b"1", MANIFEST, platform={"os": "linux", "architecture": "mips"}),
                    descriptor(b"2", MANIFEST, platform={"os": "linux", "architecture": here}),
                    descriptor(b"3", MANIFEST, platform=nowhere),
                ]
            }
        )
    )
    assert isinstance(offered, list)
    assert manifest.choose(offered).digest == offered[1].digest
    assert manifest.choose(offered, "mips").digest == offered[0].digest
    assert manifest.choose([offered[0], offered[2]]).digest == offered[0].digest
    with pytest.raises(Unsupported, match="linux/mips"):
        manifest.choose([offered[0], offered[0]])


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("debian", "debian:bookworm"),
        ("debian:latest", "debian:bookworm"),
        ("debian:trixie", "debian:trixie"),
        ("alpine", "alpine:latest"),
        ("docker.io/library/alpine:3.20", "alpine:3.20"),
        ("localhost/mine", "mine:latest"),
        ("host:5000/team/app", "host:5000/team/app:latest"),
        ("a__b/c-d:V1.0_x", "a__b/c-d:V1.0_x"),
    ],
)
def test_names_have_one_spelling(name: str, full: str) -> None:
    assert names.normalise(name) == full
    assert names.normalise(full) == full


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "-rf",
        "a//b",
        "A",
        "a:b:c",
        "a\n",
        "é",
        "a" * 300,
        "../x",
        "a../b",
        "a@b",
        "/a",
        "a:",
    ],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        names.normalise(name)


@pytest.mark.parametrize(
    "file_name",
    ["", "/", "---", "Ä.tar", "a" * 255, "x_y--z.tar.gz", "._.", "1__.-2.oci.tar", "\x1b[31m.tar"],
)
def test_any_file_name_gives_a_good_name(file_name: str) -> None:
    try:
        assert names.from_file_name(file_name)
    except TwofoldError as error:  # pragma: no cover
        pytest.fail(f"{file_name!r}: {error}")


def test_a_file_name_is_kept_where_it_can_be() -> None:
    assert names.from_file_name("/x/Alpine-3.20.3 x86_64.tar.gz") == "alpine-3.20.3-x86_64:latest"
