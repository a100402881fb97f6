"""KVM for real, without hardware: Twofold in a machine that is emulated with virtualisation in it.

The machine (L1) is a Debian with systemd under TCG whose processor has SVM (``--nested``); its
``/dev/kvm`` runs the virtual machines (L2) of the Twofold inside. A command in L2 takes seconds.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import host_lab
import pytest
from host_lab import Host, Runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]
IMAGE = "test-kvm-host"
PACKAGES = (*host_lab.PACKAGES, "erofs-utils", "qemu-system-x86")
BOOT_S = 900  # beside load 15; a tenth of it on a quiet machine


@pytest.fixture(scope="module")
def l1(
    twofold: Runner,
    twofold_root: str,
    alpine_image: str,
    clone: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Host]:
    image = host_lab.build_image(twofold, IMAGE, PACKAGES)
    scratch = tmp_path_factory.mktemp("kvm")
    share = scratch / "share"
    share.mkdir()
    host_lab.pack_checkout(clone, share / "checkout.erofs")
    # Any guest of ours makes the store hold the kernel that L1's own guests are given.
    twofold("run", "--rm", "--vm", "--network", "none", alpine_image, "true", check=True)
    root = Path(twofold_root)
    kernel = root / "kernels/linux"
    host_lab.make_state(
        root / "images", [alpine_image], share / "state.ext4", scratch, kernel=kernel
    )
    try:
        yield host_lab.boot(
            *(twofold, "host-kvm", share, clone),
            cpus=2,
            memory="2g",
            image=image,
            options=("--nested",),
        )
    finally:
        twofold("rm", "-f", "host-kvm")


@pytest.fixture(scope="module")
def l2(l1: Host) -> Iterator[str]:
    """A virtual machine by KVM, booted from cold."""
    begun = time.monotonic()
    l1.twofold(
        *("run", "-d", "--vm", "--cold", "--name", "inner", "--network", "none"),
        *("--memory", "256m", "alpine", "sleep", "9999"),
        timeout_s=BOOT_S,
    )
    print(f"L2 by KVM: from cold in {time.monotonic() - begun:.1f} s")
    yield "inner"
    l1.run("twofold", "rm", "-f", "inner")


def test_the_machine_has_a_processor_that_runs_guests(l1: Host) -> None:
    probe = "import json, sys; from twofold.hypervisor import kvm_probe; "
    probe += "r = kvm_probe.probe_now(); print(json.dumps([r.usable, r.reason]))"
    python = f"{Path(__file__).resolve().parents[2]}/.venv/bin/python"
    usable, reason = json.loads(l1.sh('cd /; exec "$1" -c "$2"', python, probe))
    assert usable, reason
    assert "guests run on the processor" in reason
    print(reason)


def test_a_virtual_machine_runs_by_kvm(l1: Host, l2: str) -> None:
    shown = json.loads(l1.twofold("show", "--json", l2))
    assert shown["isolation_facts"]["accelerator"] == "kvm"
    assert l1.twofold("exec", l2, "cat", "/etc/alpine-release").startswith("3.")
    # To its kernel as well: the clock is the one that KVM offers.
    source = "/sys/devices/system/clocksource/clocksource0/available_clocksource"
    assert "kvm-clock" in l1.twofold("exec", l2, "cat", source)


def test_the_jailed_qemu_has_a_node_of_its_own(l1: Host, l2: str) -> None:
    script = """
        read -r qemu </proc/$1/task/$1/children
        stat -c '%a %t:%T' /proc/$qemu/root/dev/kvm
        stat -c '%u' /proc/$qemu/root/dev/kvm
        awk '/^Uid:/ { print $2 } /^CapEff:/ { print $2 }' /proc/$qemu/status
        stat -c '%a %u' /dev/kvm
    """
    monitor = str(json.loads(l1.twofold("show", "--json", l2))["pid"])
    mode, owner, uid, capabilities, outside = l1.sh(script, monitor).splitlines()
    assert mode == "600 a:e8"
    assert owner == uid != "0"
    assert int(capabilities, 16) == 0
    assert outside.endswith(" 0"), "the host's own node is untouched"


def test_templates_and_forks_by_kvm(l1: Host, l2: str) -> None:
    """The first leaves a template behind, the second is forked from it."""
    command = ("run", "--rm", "--vm", "--network", "none", "--memory", "256m", "alpine", "true")
    l1.twofold(*command, timeout_s=BOOT_S)
    (template,) = json.loads(l1.twofold("template", "list", "--json"))
    assert template["shape"]["accelerator"] == "kvm"
    begun = time.monotonic()
    l1.twofold(*command, timeout_s=BOOT_S)
    print(f"L2 by KVM: forked, run and gone in {time.monotonic() - begun:.1f} s")


def test_a_machine_that_runs_by_kvm_is_copied(l1: Host, l2: str) -> None:
    """Its memory goes on, its processes do, and the two are not the same machine."""
    l1.twofold("exec", l2, "sh", "-c", "echo kept >/dev/shm/word", timeout_s=BOOT_S)
    try:
        begun = time.monotonic()
        l1.twofold("fork", l2, "--name", "copy", timeout_s=BOOT_S)
        print(f"L2 by KVM: copied while it ran in {time.monotonic() - begun:.1f} s")
        shown = json.loads(l1.twofold("show", "--json", "copy"))
        assert shown["isolation_facts"]["accelerator"] == "kvm"
        ask = "cat /dev/shm/word; hostname; pgrep -x sleep; head -c 8 /dev/urandom | od -An -tx1"
        told = {}
        for name in (l2, "copy"):
            begun = time.monotonic()
            said = l1.twofold("exec", name, "sh", "-c", ask, timeout_s=BOOT_S)
            print(f"L2 by KVM: {name} answered within {time.monotonic() - begun:.1f} s")
            told[name] = said.splitlines()
        word, hostname, payload, random = zip(*told.values(), strict=True)
        assert word == ("kept", "kept")
        assert hostname == (l2, "copy")
        assert payload[0] == payload[1]
        assert random[0] != random[1]
    finally:
        l1.run("twofold", "rm", "-f", "copy")


def test_without_being_asked_no_guest_can_virtualise(twofold: Runner, alpine_image: str) -> None:
    script = "grep -c -w -e svm -e vmx /proc/cpuinfo; ls /dev/kvm"
    done = twofold("run", "--rm", "--vm", "--network", "none", alpine_image, "sh", "-c", script)
    assert done.stdout == b"0\n"
