"""Files → systems: merging, inheritance, what is broken, what is cached. On files made here."""

import os
from pathlib import Path

import pytest

from twofold.errors import NotFound
from twofold.osinfo import Library
from twofold.osinfo.places import LOCAL, OURS, PACKAGED, Place, default_places

VIRTIO_NET, VIRTIO_BLOCK = "http://pcisig.com/pci/1af4/1000", "http://pcisig.com/pci/1af4/1001"
GPU = "http://pcisig.com/pci/1af4/1050"


class Shelf:
    """Three places with nothing in them, and a library of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.places = [
            Place(origin=origin, directory=str(directory / name))
            for origin, name in ((PACKAGED, "packaged"), (OURS, "ours"), (LOCAL, "local"))
        ]
        for place in self.places:
            os.makedirs(f"{place.directory}/os")

    def put(self, place: str, name: str, text: str) -> Path:
        path = self.directory / place / "os" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def system(self, place: str, name: str, body: str, *, uri: str | None = None) -> None:
        uri = uri or f"http://example.org/{name}"
        text = f'<libosinfo><os id="{uri}"><short-id>{name}</short-id>{body}</os></libosinfo>'
        self.put(place, f"example.org/{name}.xml", text)

    def library(self) -> Library:
        return Library(self.places)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def devices(*uris: str, more: str = "") -> str:
    return "<devices>" + "".join(f'<device id="{uri}" {more}/>' for uri in uris) + "</devices>"


def derives(name: str) -> str:
    return f'<derives-from id="http://example.org/{name}"/>'


def test_devices_are_inherited_and_say_from_whom(shelf: Shelf) -> None:
    shelf.system("packaged", "one", f"<name>One 1</name>{devices(VIRTIO_NET)}")
    shelf.system("packaged", "two", f"{derives('one')}{devices(VIRTIO_BLOCK)}")
    two = shelf.library().find("two")
    assert two.devices["virtio-net"].words() == "osinfo-db, since One 1"
    assert two.devices["virtio-block"].words() == "osinfo-db"
    assert two.virtio_in_the_box() == "partly"


def test_a_clone_inherits_and_an_upgrade_does_not(shelf: Shelf) -> None:
    shelf.system("packaged", "one", devices(VIRTIO_NET))
    shelf.system("packaged", "copy", '<clones id="http://example.org/one"/>')
    shelf.system("packaged", "next", '<upgrades id="http://example.org/one"/>')
    library = shelf.library()
    assert "virtio-net" in library.find("copy").devices
    assert library.find("next").devices == {}
    assert library.find("next").upgrades == "one"
    assert library.find("next").virtio_in_the_box() == "unknown"


def test_what_is_taken_back_stays_away_until_it_is_given_again(shelf: Shelf) -> None:
    shelf.system("packaged", "one", devices(GPU))
    shelf.system("packaged", "two", derives("one") + devices(GPU, more='supported="false"'))
    shelf.system("packaged", "three", derives("two"))
    shelf.system("packaged", "four", derives("three") + devices(GPU, more='supported="true"'))
    library = shelf.library()
    assert "virtio1.0-gpu" not in library.find("three").devices
    assert library.find("three").denied["virtio1.0-gpu"].inherited_from == "two"
    assert "virtio1.0-gpu" in library.find("four").devices


def test_a_cycle_and_a_missing_ancestor_do_no_harm(shelf: Shelf) -> None:
    shelf.system("packaged", "one", derives("three") + devices(VIRTIO_NET))
    shelf.system("packaged", "two", derives("one") + derives("nowhere"))
    shelf.system("packaged", "three", derives("two") + devices(VIRTIO_BLOCK))
    library = shelf.library()
    for name in ("one", "two", "three"):
        system = library.find(name)
        assert set(system.devices) == {"virtio-net", "virtio-block"}
        assert len(system.ancestors) == 2


def test_resources_are_those_of_the_nearest_that_names_any(shelf: Shelf) -> None:
    amounts = "<resources arch='all'><minimum><ram>1000</ram></minimum></resources>"
    shelf.system("packaged", "one", f"<name>One</name>{amounts}")
    shelf.system("packaged", "two", derives("one") + "<resources arch='all' inherit='true'/>")
    two = shelf.library().find("two")
    assert two.minimum.memory_bytes == 1000
    assert two.resources_from is not None
    assert two.resources_from.inherited_from == "One"


def test_several_files_speak_of_one_system(shelf: Shelf) -> None:
    shelf.system("packaged", "one", "<version>1</version>")
    uri = "http://example.org/one"
    extra = f'<libosinfo><os id="{uri}"><short-id>one</short-id><driver arch="x86_64">'
    extra += f'<device id="{VIRTIO_NET}"/></driver></os></libosinfo>'
    shelf.put("packaged", "example.org/one.d/drivers.xml", extra)
    one = shelf.library().find("one")
    assert (one.version, one.addable, one.also_called) == ("1", ("virtio-net",), ())


def test_ours_fills_gaps_and_never_contradicts_the_package(shelf: Shelf) -> None:
    uri = "http://example.org/one"
    denied = devices(GPU, more='supported="false"')
    shelf.system("packaged", "one", f"<name>Theirs</name>{denied}", uri=uri)
    noted = devices(GPU, VIRTIO_NET, more='note="man"')
    body = f"<name>Ours</name><version>7</version>{noted}"
    shelf.put(
        "ours",
        "more.xml",
        f'<libosinfo><os id="{uri}"><short-id>one</short-id>{body}</os></libosinfo>',
    )
    one = shelf.library().find("one")
    assert (one.name, one.version) == ("Theirs", "7")
    assert list(one.devices) == ["virtio-net"]
    assert one.devices["virtio-net"].words() == "Twofold's additions: man"


def test_the_administrators_word_is_the_last(shelf: Shelf) -> None:
    uri = "http://example.org/one"
    theirs = "<resources arch='all'><minimum><ram>1</ram></minimum></resources>"
    shelf.system("packaged", "one", f"<name>Theirs</name>{devices(GPU)}{theirs}", uri=uri)
    mine = "<resources arch='all'><minimum><ram>2</ram></minimum></resources>"
    taken = devices(GPU, more='supported="false"')
    shelf.put(
        "local",
        "mine.xml",
        f'<libosinfo><os id="{uri}"><name>Mine</name>{mine}{taken}</os></libosinfo>',
    )
    one = shelf.library().find("one")
    assert (one.name, one.minimum.memory_bytes, one.devices) == ("Mine", 2, {})
    assert one.origins == ("osinfo-db", "/etc/osinfo")


def test_a_local_file_of_the_same_path_replaces_and_a_link_to_null_hides(shelf: Shelf) -> None:
    shelf.system("packaged", "one", devices(VIRTIO_NET))
    shelf.system("packaged", "two", devices(VIRTIO_NET))
    shelf.system("local", "one", devices(VIRTIO_BLOCK))
    os.symlink("/dev/null", shelf.directory / "local/os/example.org/two.xml")
    library = shelf.library()
    assert list(library.find("one").devices) == ["virtio-block"]
    with pytest.raises(NotFound):
        library.find("two")


@pytest.mark.parametrize(
    "text", ["<libosinfo><os id='x'>", "\x00\xff", "<a>&undefined;</a>", "<a/>" + " " * (5 << 20)]
)
def test_a_broken_file_is_left_out_with_a_warning(shelf: Shelf, text: str) -> None:
    shelf.system("packaged", "good", devices(VIRTIO_NET))
    path = shelf.put("local", "bad.xml", text)
    library = shelf.library()
    assert library.find("good").id == "good"
    (warning,) = library.status().warnings
    assert str(path) in warning


def test_numbers_that_are_none_are_not_believed(shelf: Shelf) -> None:
    amounts = "<ram>&#xFF11;&#xFF12;</ram><n-cpus>-1</n-cpus><storage>0</storage>"
    shelf.system("local", "one", f"<resources><minimum>{amounts}</minimum></resources>")
    one = shelf.library().find("one")
    assert (one.minimum.vcpus, one.minimum.memory_bytes, one.minimum.disk_bytes) == (None,) * 3


def test_without_the_package_it_says_so_and_knows_ours(tmp_path: Path) -> None:
    nowhere = Place(origin=PACKAGED, directory=str(tmp_path / "nowhere"))
    library = Library([nowhere, *default_places()[1:2]])
    status = library.status()
    assert not status.present
    assert status.version == ""
    assert library.find("debian12").name == "Debian 12"
    assert library.find("freedos1.2").name == "FreeDOS 1.2"
    with pytest.raises(NotFound) as caught:
        library.find("win11")
    assert "osinfo-db is not installed" in caught.value.hint


def test_unknown_systems_are_not_found_with_a_hint(shelf: Shelf) -> None:
    shelf.system("packaged", "openbsd7.0", "")
    with pytest.raises(NotFound, match=r"'openbsd7.00'") as caught:
        shelf.library().find("openbsd7.00")
    assert "openbsd7.0" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        shelf.library().find("\x1b[2J")
    assert caught.value.hint == "twofold os list"


def test_select_by_part_and_by_glob(shelf: Shelf) -> None:
    for name in ("bsd1", "bsd2", "linux"):
        shelf.system("packaged", name, f"<name>The {name}</name>")
    library = shelf.library()
    assert [one.id for one in library.select("BSD")] == ["bsd1", "bsd2"]
    assert [one.id for one in library.select("*2")] == ["bsd2"]
    assert [one.id for one in library.select("the l")] == ["linux"]
    assert len(library.select()) == 3


def test_the_cache_is_used_while_no_file_changes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shelf.directory / "cache"
    cache.mkdir()
    shelf.system("packaged", "one", devices(VIRTIO_NET))
    first = shelf.library()
    first.keep_cache_in(str(cache))
    assert first.find("one").devices
    with monkeypatch.context() as patched:
        patched.setattr("twofold.osinfo.library._read", None)  # reading again would fail
        second = shelf.library()
        second.keep_cache_in(str(cache))
        assert second.find("one") == first.find("one")
    shelf.system("packaged", "one", devices(VIRTIO_NET, VIRTIO_BLOCK))
    assert len(second.find("one").devices) == 2
    assert len(first.find("one").devices) == 2


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"key": 1}', '{"key": null, "records": {}}'])
def test_a_damaged_cache_costs_only_time(shelf: Shelf, kept: str) -> None:
    shelf.system("packaged", "one", "")
    (shelf.directory / "osinfo.json").write_text(kept)
    library = shelf.library()
    library.keep_cache_in(str(shelf.directory))
    assert library.find("one").id == "one"
    library = shelf.library()
    (shelf.directory / "a file").touch()
    library.keep_cache_in(str(shelf.directory / "a file"))
    assert library.find("one").id == "one"
