"""Images and wishes for a processor that this host has not are refused by name."""

from types import SimpleNamespace
from typing import Any

import pytest

from twofold.errors import Unsupported
from twofold.image import manifest
from twofold.instance import architecture
from twofold.model.image import ImageKind


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "host_architecture", lambda: "amd64")


def image(machine: str, kind: ImageKind = ImageKind.ROOT) -> Any:
    return SimpleNamespace(architecture=machine, kind=kind)


@pytest.mark.parametrize("word", [None, "amd64", "x86_64"])
def test_this_hosts_own_is_taken(word: str | None) -> None:
    architecture.check_wanted(word)


@pytest.mark.parametrize("word", ["arm64", "aarch64", "riscv64", "nonsense"])
def test_another_is_refused_by_name(word: str) -> None:
    with pytest.raises(Unsupported, match=f"architecture '{word}': this host is amd64"):
        architecture.check_wanted(word)


def test_an_image_for_another_is_refused() -> None:
    architecture.check_image(image("amd64"), "debian")
    architecture.check_image(image("unknown"), "debian")
    architecture.check_image(image("arm64", ImageKind.DISK), "disk")
    with pytest.raises(Unsupported, match="image 'debian' is for arm64; this host is amd64"):
        architecture.check_image(image("arm64"), "debian")


def test_the_kernels_words_are_ocis() -> None:
    assert manifest.spelled("aarch64") == "arm64"
    assert manifest.spelled("arm64") == "arm64"
