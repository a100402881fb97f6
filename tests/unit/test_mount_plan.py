"""Every word of mount(8) and of the runtime specification, and what it comes to."""

import pytest

from twofold.linux import mount as lm
from twofold.runtime import mount_cgroup
from twofold.runtime.mount_plan import CgroupView, Options, own_options, parse_options

SETTING = {
    "ro": lm.ATTR_RDONLY,
    "nosuid": lm.ATTR_NOSUID,
    "nodev": lm.ATTR_NODEV,
    "noexec": lm.ATTR_NOEXEC,
    "nosymfollow": lm.ATTR_NOSYMFOLLOW,
    "nodiratime": lm.ATTR_NODIRATIME,
}
CLEARING = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
CLEARING |= {"symfollow": "nosymfollow", "diratime": "nodiratime"}
ATIME = {
    "noatime": lm.ATTR_NOATIME,
    "strictatime": lm.ATTR_STRICTATIME,
    "relatime": lm.ATTR_RELATIME,
}
PROPAGATION = {
    "private": lm.MS_PRIVATE,
    "slave": lm.MS_SLAVE,
    "shared": lm.MS_SHARED,
    "unbindable": lm.MS_UNBINDABLE,
}


@pytest.mark.parametrize("word", SETTING)
def test_a_word_sets_its_bit(word: str) -> None:
    assert parse_options([word]) == Options(attributes=SETTING[word])
    assert parse_options([f"r{word}"]) == Options(recursive_attributes=SETTING[word])


@pytest.mark.parametrize("word", CLEARING)
def test_its_opposite_clears_it(word: str) -> None:
    bit = SETTING[CLEARING[word]]
    assert parse_options([word]) == Options(clear=bit)
    assert parse_options([f"r{word}"]) == Options(recursive_clear=bit)


@pytest.mark.parametrize("word", CLEARING)
def test_the_later_of_two_opposites_wins(word: str) -> None:
    other, bit = CLEARING[word], SETTING[CLEARING[word]]
    assert parse_options([other, word]) == Options(clear=bit)
    assert parse_options([word, other]) == Options(attributes=bit)
    assert parse_options([f"r{other}", f"r{word}"]) == Options(recursive_clear=bit)


@pytest.mark.parametrize("word", CLEARING)
def test_a_recursive_word_replaces_what_was_said_of_the_top(word: str) -> None:
    other, bit = CLEARING[word], SETTING[CLEARING[word]]
    assert parse_options([other, f"r{word}"]) == Options(recursive_clear=bit)


def test_a_plain_word_after_a_recursive_one_is_an_exception_for_the_top() -> None:
    expected = Options(recursive_attributes=lm.ATTR_RDONLY, clear=lm.ATTR_RDONLY)
    assert parse_options(["rro", "rw"]) == expected


@pytest.mark.parametrize("word", ATIME)
def test_access_times_are_one_choice_of_three(word: str) -> None:
    bits, mask = ATIME[word], lm.ATTR_ATIME_MASK
    assert parse_options([word]) == Options(attributes=bits, clear=mask)
    assert parse_options([f"r{word}"]) == Options(recursive_attributes=bits, recursive_clear=mask)
    for other in ATIME:
        assert parse_options([other, word]) == Options(attributes=bits, clear=mask)


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        (["noatime", "atime"], 0),
        (["strictatime", "nostrictatime"], 0),
        (["noatime", "nostrictatime"], lm.ATTR_NOATIME),
        (["noatime", "norelatime"], lm.ATTR_NOATIME),
        (["strictatime", "atime"], lm.ATTR_STRICTATIME),
        (["atime"], 0),
        (["norelatime"], 0),
        (["nostrictatime"], 0),
    ],
)
def test_a_choice_of_access_times_is_taken_back(words: list[str], bits: int) -> None:
    assert parse_options(words) == Options(attributes=bits, clear=lm.ATTR_ATIME_MASK)
    recursive = parse_options([f"r{word}" for word in words])
    expected = Options(recursive_attributes=bits, recursive_clear=lm.ATTR_ATIME_MASK)
    assert recursive == expected


@pytest.mark.parametrize("word", PROPAGATION)
def test_propagation_is_kept_in_order(word: str) -> None:
    assert parse_options([word]).propagation == ((PROPAGATION[word], False),)
    assert parse_options([f"r{word}"]).propagation == ((PROPAGATION[word], True),)
    both = parse_options(["rslave", word])
    assert both.propagation == ((lm.MS_SLAVE, True), (PROPAGATION[word], False))


def test_binds() -> None:
    assert parse_options(["bind"]) == Options(bind=True)
    assert parse_options(["rbind"]) == Options(bind=True, recursive=True)
    assert parse_options(["remount", "bind"]) == Options(bind=True, remount=True)


@pytest.mark.parametrize("word", ["defaults", "silent", "loud"])
def test_words_that_ask_for_nothing(word: str) -> None:
    assert parse_options([word]) == Options()


@pytest.mark.parametrize("word", ["idmap", "ridmap"])
def test_idmaps(word: str) -> None:
    assert parse_options(["bind", word]) == Options(bind=True, idmap=word)


def test_copy_up() -> None:
    assert parse_options(["tmpcopyup"]) == Options(copy_up=True)


@pytest.mark.parametrize(
    ("word", "opposite"),
    [("sync", "async"), ("lazytime", "nolazytime"), ("iversion", "noiversion"), ("mand", "nomand")],
)
def test_options_of_the_superblock(word: str, opposite: str) -> None:
    assert parse_options([opposite, word]).superblock == (word,)
    assert parse_options([word, opposite]).superblock == (opposite,)


def test_dirsync_has_no_opposite() -> None:
    assert parse_options(["dirsync", "sync"]).superblock == ("dirsync", "sync")


def test_other_words_belong_to_the_file_system() -> None:
    options = parse_options(["nosuid", "mode=755", "newinstance", "size=64k"])
    assert options == Options(
        attributes=lm.ATTR_NOSUID, data=("mode=755", "newinstance", "size=64k")
    )
    assert own_options(options) == {"mode": "755", "newinstance": None, "size": "64k"}


@pytest.mark.parametrize("word", ["rsync", "rremount", "Ro", "r", "", "rrro", "nodevs"])
def test_a_word_that_only_looks_like_one_of_ours_is_not(word: str) -> None:
    assert parse_options([word]) == Options(data=(word,))


def test_one_word_may_hold_several_options_and_quotes_keep_a_comma() -> None:
    options = parse_options(['mode=755,context="a:b:s0:c1,c2",size=1', "sync"])
    expected = {"mode": "755", "context": "a:b:s0:c1,c2", "size": "1", "sync": None}
    assert own_options(options) == expected


def test_hierarchies_are_shown_as_the_host_names_them() -> None:
    view = CgroupView(
        mounts={
            "cpu": "/sys/fs/cgroup/cpu,cpuacct",
            "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
            "memory": "/sys/fs/cgroup/memory",
            "name=systemd": "/sys/fs/cgroup/systemd",
            "pids": "/sys/fs/cgroup/pids",
            "": "/sys/fs/cgroup/unified",
        },
        groups=dict.fromkeys(("cpu", "cpuacct", "memory", "name=systemd", ""), "/own"),
    )
    assert mount_cgroup.hierarchies(view) == {
        "cpu,cpuacct": ("cpu", "cpuacct"),
        "memory": ("memory",),
        "systemd": ("name=systemd",),
        "unified": ("",),
    }
    assert not mount_cgroup.is_v2(view)
    assert mount_cgroup.is_v2(CgroupView(mounts={"": "/sys/fs/cgroup"}, groups={}))
