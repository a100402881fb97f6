"""Where Debian comes from: apt's two formats, other suites, options, and what is left out."""

import pytest

from twofold.errors import InvalidInput, Unavailable
from twofold.image.sources import bootstrap
from twofold.image.sources.aptsources import DEBIAN_KEYRING, HostArchive, from_text, lines_for
from twofold.image.store import ImageStore

HAVE = frozenset({DEBIAN_KEYRING, "/etc/apt/keyrings/mirror.gpg"})

DEB822 = """\
Types: deb deb-src
# a comment in the middle
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
"""


def test_deb822_and_another_suite_of_the_same_archive() -> None:
    archive = from_text([("debian.sources", DEB822)], "")
    assert lines_for(archive, "trixie", exists=HAVE) == [
        f"deb [signed-by={DEBIAN_KEYRING}] http://deb.debian.org/debian trixie main",
        f"deb [signed-by={DEBIAN_KEYRING}] http://deb.debian.org/debian trixie-updates main",
        f"deb [signed-by={DEBIAN_KEYRING}] http://deb.debian.org/debian-security "
        "trixie-security main",
    ]
    assert lines_for(archive, "sid", exists=HAVE) == [
        f"deb [signed-by={DEBIAN_KEYRING}] http://deb.debian.org/debian sid main"
    ]


def test_one_line_sources_and_their_keyring() -> None:
    text = (
        "# deb http://commented.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/etc/apt/keyrings/mirror.gpg trusted=yes] "
        "https://mirror.example/debian/ bookworm main contrib # tail\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb https://packages.example/apt cloud-sdk-bookworm main\n"
    )
    assert lines_for(from_text([("x.list", text)], ""), "bookworm", exists=HAVE) == [
        "deb [signed-by=/etc/apt/keyrings/mirror.gpg] https://mirror.example/debian/ bookworm main"
    ]


def test_a_host_that_is_not_debian_uses_the_public_archive() -> None:
    text = "Types: deb\nURIs: http://archive.ubuntu.com/ubuntu\nSuites: noble\nComponents: main\n"
    lines = lines_for(from_text([("u.sources", text)], ""), "bookworm", exists=HAVE)
    assert [line.split()[2] for line in lines] == [
        "http://deb.debian.org/debian",
        "http://deb.debian.org/debian",
        "http://deb.debian.org/debian-security",
    ]


def test_no_keyring_no_build() -> None:
    with pytest.raises(Unavailable) as caught:
        lines_for(from_text([], ""), "bookworm", exists=frozenset())
    assert caught.value.hint == "apt install debian-archive-keyring"


def test_options_that_reach_the_archive_are_taken_and_the_rest_left() -> None:
    dump = """\
Acquire "";
Acquire::Check-Valid-Until "false";
Acquire::http::Proxy "http://user:secret@127.0.0.1:3142/";
Acquire::https::deb.example::Verify-Peer "true";
Acquire::AllowInsecureRepositories "1";
Acquire::Languages:: "none";
Acquire::Changelogs::URI::Origin::Debian "https://x";
"""
    archive = from_text([], dump)
    assert archive.options == (
        'Acquire::Check-Valid-Until "false";',
        'Acquire::http::Proxy "http://user:secret@127.0.0.1:3142/";',
        'Acquire::https::deb.example::Verify-Peer "true";',
    )
    assert archive.lasting == ('Acquire::Check-Valid-Until "false";',)


def test_a_proxy_is_not_left_in_the_image() -> None:
    archive = HostArchive(
        sources=(), options=('Acquire::http::Proxy "http://s3cret@p/";',), lasting=()
    )
    argv = bootstrap.command_line(archive, "bookworm", ["dbus"], "minbase", working="/w")
    assert not any("s3cret" in argument for argument in argv)
    assert "--setup-hook=upload /w/apt.conf /etc/apt/apt.conf.d/98build" in argv
    assert '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/98build"' in argv


@pytest.mark.parametrize(
    ("suite", "include", "variant"),
    [
        ("bookworm; rm", [], None),
        ("-h", [], None),
        ("../x", [], None),
        ("bookworm", ["a b"], None),
        ("bookworm", ["?essential"], None),
        ("bookworm", ["./x.deb"], None),
        ("bookworm", ["pkg-"], "odd"),
        ("bookworm", ["a,b"], None),
        ("bookworm", ["-o"], None),
        ("trixie", [], None),  # the name says bookworm
    ],
)
def test_bad_requests_are_refused_before_any_work(tmp_path, suite, include, variant) -> None:
    store = ImageStore(str(tmp_path / "images"))
    with pytest.raises(InvalidInput):
        bootstrap.build(store, "debian", suite, include, variant)
