"""Media → systems, against the distribution's own database and our additions."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from twofold import osinfo
from twofold.osinfo import Library
from twofold.osinfo.places import PACKAGED, Place


@dataclass(frozen=True, kw_only=True)
class Facts:
    volume_id: str = ""
    system_id: str = ""
    publisher_id: str = ""
    application_id: str = ""
    volume_size_bytes: int = 0
    boot_bios: bool = True
    boot_uefi: bool = False
    file: str = "disk.iso"


@pytest.fixture(scope="module")
def library() -> Library:
    if not osinfo.status().present:
        pytest.fail("the package osinfo-db is missing: scripts/setup installs it")
    return Library()


NETBSD = Facts(system_id="NetBSD", volume_id="NETBSD_90", volume_size_bytes=488005632)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(volume_id="Debian 12.5.0 amd64 n"), "debian12"),
        (Facts(volume_id="Debian 13.0.0 amd64 1"), "debian13"),
        (Facts(volume_id="Debian 11.5.0 amd64 n"), "debian11"),
        (
            Facts(
                volume_id="OpenBSD/amd64   7.0 Install CD",
                system_id="OpenBSD",
                publisher_id="Copyright (c) 2021 Theo de Raadt, The OpenBSD project",
                application_id="OpenBSD 7.0 amd64 Install CD",
            ),
            "openbsd7.0",
        ),
        (Facts(volume_id="OpenBSD/amd64   7.6 Install CD", system_id="OpenBSD"), "openbsd7.6"),
        (Facts(volume_id="13_1_RELEASE_AMD64_CD", system_id="FreeBSD"), "freebsd13.1"),
        (Facts(volume_id="14_2_RELEASE_AMD64_DVD", system_id="FreeBSD"), "freebsd14.2"),
        (NETBSD, "netbsd9.0"),
        (Facts(volume_id="FD-SETUP", system_id="LINUX"), "freedos1.2"),
        (Facts(volume_id="CESE_X64FREE_EN-US_DV5", publisher_id="MICROSOFT CORPORATION"), "win10"),
    ],
)
def test_media_are_recognised(library: Library, facts: Facts, expected: str) -> None:
    match = library.identify(facts)
    assert match is not None
    assert match.system.id == expected
    assert match.certain
    assert f"volume id {facts.volume_id!r} matches" in match.rule


def test_where_two_fit_equally_the_newest_is_taken_and_the_other_named(library: Library) -> None:
    facts = Facts(volume_id="CCCOMA_X64FRE_EN-US_DV9", publisher_id="MICROSOFT CORPORATION")
    match = library.identify(facts)
    assert match is not None
    assert (match.system.id, match.others) == ("win11", ("win10",))
    assert "would fit Microsoft Windows 10 as well" in match.rule


def test_architecture_and_kind_of_medium_come_along(library: Library) -> None:
    match = library.identify(NETBSD)
    assert match is not None
    assert (match.architecture, match.live, match.installer) == ("x86_64", False, True)
    assert "volume size is 488005632 bytes" in match.rule


@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(volume_id="MY BACKUP"),
        Facts(volume_id="debian 12.5.0 amd64 n"),  # capitals count
        Facts(volume_id="NETBSD_90"),  # what else its pattern wants is missing
        Facts(system_id="NetBSD", volume_id="NETBSD_90", volume_size_bytes=1),
        Facts(file="disk.img"),
        Facts(volume_id="(" * 32 + "\x00\udcff"),
    ],
)
def test_what_is_not_known_is_not_guessed(library: Library, facts: Facts) -> None:
    assert library.identify(facts) is None


def test_a_published_name_is_weak_evidence_and_says_so(library: Library) -> None:
    match = library.identify(Facts(file="debian-12-genericcloud-amd64.qcow2"))
    assert match is not None
    assert match.system.id == "debian12"
    assert match.system.cloud_init
    assert not match.certain
    assert "a name can lie" in match.rule


def test_a_pattern_that_is_none_matches_nothing(tmp_path: Path) -> None:
    (tmp_path / "os").mkdir()
    media = "<media><iso><volume-id>(A</volume-id></iso></media>"
    media += "<media><iso><volume-id>B|C?*</volume-id></iso></media>"
    (tmp_path / "os/one.xml").write_text(
        f"<libosinfo><os id='http://example.org/1'><short-id>one</short-id>{media}</os></libosinfo>"
    )
    library = Library([Place(origin=PACKAGED, directory=str(tmp_path))])
    assert library.identify(Facts(volume_id="(A")) is None
    assert library.identify(Facts(volume_id="B")) is None


def test_every_shipped_medium_of_ours_is_found_again(library: Library) -> None:
    """A pattern of ours that a more general one of the database swallows would be useless."""
    for name in ("openbsd7.8", "freebsd14.3", "netbsd10.0", "freedos1.3", "openbsd2.8"):
        assert library.find(name).id == name


@pytest.mark.parametrize("letters", ["A", " ", "1", "A1_", "Debian 1", "OpenBSD/amd64 ", "(a"])
def test_a_strangers_text_costs_little(library: Library, letters: str) -> None:
    """All patterns of the database against text made to be nearly right, as long as it may be."""
    text = (letters * 200)[:4096]
    facts = Facts(volume_id=text, system_id=text, publisher_id=text, application_id=text)
    began_s = time.process_time()
    library.identify(facts)
    assert time.process_time() - began_s < 1.0


@pytest.mark.parametrize(
    ("volume_id", "expected", "version"),
    [
        ("Debian 27.1.0 amd64 n", "debian", "27"),
        ("Ubuntu-Server 98.04.1 LTS amd64", "ubuntu", "98.04"),
        ("OpenBSD/amd64   9.1 Install CD", "openbsd", "9.1"),
        ("99_0_RELEASE_AMD64_CD", "freebsd", "99.0"),
        ("openSUSE-Leap-15.9-DVD-x86_64", "opensuse", "15.9"),  # 42.3 came before it
        ("CentOS-Stream-98-BaseOS-x86_64", "centos", "98"),  # "CentOS" alone fits as well
        ("alpine-std 9.99.3 x86_64", "alpinelinux", "9.99"),
    ],
)
def test_a_newer_release_counts_as_the_last_known_and_is_called_a_guess(
    library: Library, volume_id: str, expected: str, version: str
) -> None:
    systems = {"openbsd": "OpenBSD", "freebsd": "FreeBSD"}
    match = library.identify(Facts(volume_id=volume_id, system_id=systems.get(expected, "LINUX")))
    assert match is not None
    assert match.system.distro == expected
    assert not match.certain
    assert f"{version}, which is not known yet: taken for {match.system.name}" in match.rule


@pytest.mark.parametrize(
    "volume_id",
    [
        "Debian 1.0.0 amd64 n",  # older than any that is known
        "OpenBSD/amd64   3.9 Install CD",
        "Debian 27.1.0",
        "Fedora-X-dvd-pdp11-99",
        "1" * 32,
    ],
)
def test_what_is_not_newer_is_no_relative(library: Library, volume_id: str) -> None:
    assert library.identify(Facts(volume_id=volume_id, system_id="OpenBSD")) is None
