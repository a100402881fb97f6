"""Which processor an instance gets: of its image, emulated behind the VM's wall, or refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from twofold.errors import InvalidInput, NotFound, TwofoldError, Unsupported
from twofold.image import manifest, names
from twofold.instance import architecture
from twofold.model.image import ImageKind
from twofold.model.instance import InstanceSpec

IMAGES = {
    "debian": "amd64",
    "busybox": "amd64",
    "alpine": "arm64",
    "tool": "amd64",
    "arm64/tool:latest": "arm64",
    "s390": "s390x",
}


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "host_architecture", lambda: "amd64")


def image(machine: str, kind: ImageKind = ImageKind.ROOT) -> Any:
    return SimpleNamespace(architecture=machine, kind=kind)


def find(name: str) -> Any:
    if name not in IMAGES:
        raise NotFound(f"no image {name!r}")
    return image(IMAGES[name])


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "x", "isolation": "vm", **fields})


@pytest.mark.parametrize("word", [None, "amd64", "x86_64", "arm64", "aarch64"])
def test_this_hosts_own_and_emulated_ones_are_taken(word: str | None) -> None:
    architecture.check_wanted(word)


@pytest.mark.parametrize("word", ["riscv64", "nonsense"])
def test_another_is_refused_by_name(word: str) -> None:
    with pytest.raises(Unsupported, match=f"architecture '{word}': this host is amd64") as caught:
        architecture.check_wanted(word)
    assert ("Debian 12, which has no release for it" in caught.value.message) is (word == "riscv64")


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("debian", None, "debian"),
        ("debian", "x86_64", "debian"),
        ("debian", "arm64", "arm64/debian:bookworm"),  # is built beside the other
        ("debian:trixie", "aarch64", "arm64/debian:trixie"),
        ("arm64/debian", "arm64", "arm64/debian:bookworm"),
        ("alpine", "arm64", "alpine"),
        ("tool", "arm64", "arm64/tool:latest"),
        ("/a/file.tar", "arm64", "/a/file.tar"),
    ],
)
def test_which_image_a_name_stands_for(name: str, wanted: str | None, expected: str) -> None:
    assert architecture.image_name(name, wanted, find) == expected


def test_an_image_that_is_only_there_for_another_processor() -> None:
    with pytest.raises(Unsupported, match="'busybox' is for amd64, not for arm64") as caught:
        architecture.image_name("busybox", "arm64", find)
    assert "arm64/busybox:latest" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("debian", None, ("debian", None)),
        ("debian", "amd64", ("debian", None)),
        ("debian", "arm64", ("arm64/debian:bookworm", "arm64")),
        ("arm64/debian", None, ("arm64/debian:bookworm", "arm64")),
        ("web", "aarch64", ("arm64/web:latest", "arm64")),
    ],
)
def test_what_is_built(name: str, wanted: str | None, expected: tuple[str, str | None]) -> None:
    assert architecture.build_name(name, wanted) == expected


def test_name_and_wish_must_not_contradict() -> None:
    with pytest.raises(InvalidInput, match="stands for arm64, not for amd64"):
        architecture.build_name("arm64/debian", "amd64")


def test_the_images_processor_becomes_the_instances() -> None:
    assert architecture.settle(spec(), image("arm64")).arch == "arm64"
    assert architecture.settle(spec(arch="aarch64"), image("arm64")).arch == "arm64"
    assert architecture.settle(spec(), image("amd64")).arch is None
    assert architecture.settle(spec(isolation="container"), image("unknown")).arch is None


@pytest.mark.parametrize(
    ("fields", "machine", "words"),
    [
        ({"isolation": "container"}, "arm64", "a container runs on this host's own"),
        ({"nested": True}, "arm64", "--nested"),
        ({"arch": "arm64"}, "amd64", "is for amd64, not for arm64"),
        ({"arch": "amd64"}, "arm64", "is for arm64, not for amd64"),
        ({}, "s390x", "is for s390x; this host is amd64"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], machine: str, words: str) -> None:
    with pytest.raises(TwofoldError, match=words) as caught:
        architecture.settle(spec(**fields), image(machine))
    assert caught.value.hint


def test_the_kernels_words_are_ocis() -> None:
    assert manifest.spelled("aarch64") == "arm64"
    assert manifest.spelled("arm64") == "arm64"


def test_foreign_images_have_names_of_their_own() -> None:
    assert names.normalise("arm64/debian") == "arm64/debian:bookworm"
    assert names.is_builtin("arm64/debian")
    assert names.for_architecture("arm64/debian:trixie", "arm64") == "arm64/debian:trixie"
    assert names.architecture_of("arm64") is None
    assert names.architecture_of("debian") is None
