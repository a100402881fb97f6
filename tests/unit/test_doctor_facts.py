"""What the doctor concludes from what it sees; the kernel's answers are made up here."""

from collections.abc import Iterable
from typing import Any

import pytest

from twofold import osinfo
from twofold.daemon.doctor import host, images, isolation, machines, network, resources, storage
from twofold.daemon.doctor.fact import Fact, family, install, parse_os_release
from twofold.hypervisor.kvm_probe import KvmProbe
from twofold.linux import nftables
from twofold.model.paths import Paths
from twofold.network.bridge import HostNetwork
from twofold.runtime.cgroups import Hierarchies


class Survey:
    """Answers from a dictionary instead of child processes."""

    def __init__(self, root: str = "/nowhere/at/all", **failed: str) -> None:
        self.paths = Paths(root)
        self.family = "debian"
        self.os_release = {"PRETTY_NAME": "Debian"}
        self._failed = failed

    def trial(self, kind: str, name: str) -> str:
        return self._failed.get(name.replace("-", "_"), "")

    def install(self, package: str) -> str:
        return install(self.family, package)

    def remaining_s(self) -> float:
        return 1.0


def by_id(facts: Iterable[Fact]) -> dict[str, Fact]:
    return {fact.id: fact for fact in facts}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ID=debian\n", "debian"),
        ("ID=ubuntu\nID_LIKE=debian\n", "debian"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "debian"),
        ("ID=fedora\n", "fedora"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ("ID=arch\n", "arch"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "suse"),
        ("ID=nixos\n", ""),
        ("# nothing\n", ""),
    ],
)
def test_families(text: str, expected: str) -> None:
    assert family(parse_os_release(text)) == expected


def test_fixes_speak_the_distributions_language() -> None:
    assert install("debian", "ovmf") == "apt-get install ovmf"
    assert install("fedora", "ovmf") == "dnf install edk2-ovmf"
    assert install("arch", "libnftables1") == "pacman -S nftables"
    assert install("suse", "qemu-system-x86") == "zypper install qemu-x86"
    assert "not packaged" in install("suse", "mmdebstrap")
    assert install("", "tini") == "install the package that Debian calls tini"


def test_a_missing_capability_is_a_loss_or_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = (1 << 41) - 1
    monkeypatch.setattr(host.capabilities, "effective_mask", lambda: everything)
    assert by_id(host.privileges(Survey()))["capabilities"].status == "ok"
    monkeypatch.setattr(host.capabilities, "effective_mask", lambda: everything & ~(1 << 24))
    fact = by_id(host.privileges(Survey()))["capabilities"]
    assert (fact.status, fact.value) == ("degraded", "without CAP_SYS_RESOURCE")
    assert "clamped" in fact.reason
    monkeypatch.setattr(host.capabilities, "effective_mask", lambda: everything & ~(1 << 21))
    fact = by_id(host.privileges(Survey()))["capabilities"]
    assert (fact.status, fact.required) == ("missing", True)


def test_an_old_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, status in (("5.10.0-28-amd64", "missing"), ("5.15.1", "ok"), ("6.1.0", "ok")):
        monkeypatch.setattr(host.platform, "release", lambda release=release: release)
        assert by_id(host.system(Survey()))["system"].status == status


def test_namespaces_report_the_kernels_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "read", lambda path: "0" if "max_user" in path else "")
    facts = by_id(isolation.namespaces(Survey(user="No space left on device")))
    assert facts["namespace-mnt"].status == "ok"
    assert facts["namespace-user"].status == "missing"
    assert facts["namespace-user"].fix == "sysctl -w user.max_user_namespaces=65536"
    limit = by_id(isolation.user_namespace_limits(Survey()))["user-namespace-limit"]
    assert limit.status == "missing"


def test_cgroup_v2(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    found = Hierarchies(v1={}, v2=str(tmp_path), v2_controllers=("cpu", "memory", "pids"))
    monkeypatch.setattr(resources.cgroups, "detect", lambda: found)
    tried = []
    monkeypatch.setattr(resources.device_filter, "attach", lambda *given: tried.append(given))
    facts = by_id(resources.control_groups(Survey()))
    assert facts["cgroup-mode"].value == "v2"
    for name in ("cpu", "memory", "pids", "devices", "freezer"):
        assert (facts[f"cgroup-{name}"].status, facts[f"cgroup-{name}"].value) == ("ok", "v2")
    assert facts["cgroup-io"].status == "degraded"
    assert len(tried) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_hybrid_host_without_the_pids_controller(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    found = Hierarchies(v1={"memory": str(tmp_path)}, v2=str(tmp_path), v2_controllers=())
    monkeypatch.setattr(resources.cgroups, "detect", lambda: found)
    facts = by_id(resources.control_groups(Survey()))
    assert facts["cgroup-memory"].value == "v1"
    assert facts["cgroup-pids"].status == "missing"
    assert "fork bomb" in facts["cgroup-pids"].reason
    assert (facts["cgroup-freezer"].status, facts["cgroup-freezer"].value) == ("ok", "v2")
    assert facts["cgroup-devices"].status == "degraded"  # a directory is no group: no program


def test_a_read_only_cgroup_tree_is_noticed() -> None:
    assert "cannot be made" in resources._can_make_group("/proc")


def test_no_cgroups_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Hierarchies(v1={}, v2="", v2_controllers=())
    monkeypatch.setattr(resources.cgroups, "detect", lambda: nothing)
    facts = by_id(resources.control_groups(Survey()))
    assert facts["cgroup-mode"].status == "missing"


def test_overlay_failures_name_the_place() -> None:
    facts = by_id(storage.layers(Survey(idmap_overlay="Invalid argument")))
    assert facts["overlay"].status == "ok"
    assert facts["idmap-overlay"].reason.startswith("Invalid argument (in /")


def test_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((100 << 20, "missing"), (3 << 30, "degraded"), (6 << 30, "ok")):
        usage = storage.shutil._ntuple_diskusage(10 << 30, 0, free)
        monkeypatch.setattr(storage.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert by_id(storage.space(Survey()))["disk-space"].status == status


def chain(name: str, table: str = "filter", **more: str) -> dict[str, Any]:
    return {"chain": {"family": "ip", "table": table, "name": name, **more}}


@pytest.mark.parametrize(
    ("chains", "status", "word"),
    [
        ([], "ok", "none"),
        ([chain("FORWARD", hook="forward", policy="accept")], "ok", "none"),
        ([chain("FORWARD", hook="forward", policy="drop")], "degraded", "iptables -I FORWARD"),
        (
            [chain("FORWARD", hook="forward", policy="drop"), chain("DOCKER-USER")],
            "ok",
            "DOCKER-USER",
        ),
        ([chain("filter_FORWARD", table="firewalld")], "degraded", "firewall-cmd"),
    ],
)
def test_firewalls_of_others(
    monkeypatch: pytest.MonkeyPatch, chains: list[dict[str, Any]], status: str, word: str
) -> None:
    monkeypatch.setattr(nftables, "listing", lambda command: chains)
    fact = by_id(network.other_firewalls(Survey()))["other-firewalls"]
    assert fact.status == status
    assert word in fact.value + fact.fix


def test_a_resolver_on_the_hosts_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "read", lambda path: "nameserver 127.0.0.1\n")
    fact = by_id(network.resolver(Survey()))["resolver"]
    assert fact.status == "degraded"
    assert "127.0.0.1" in fact.reason


def test_the_subnet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = HostNetwork(taken=(), own=None, mtu=1400)
    monkeypatch.setattr(network.bridge, "survey", lambda name: seen)
    fact = by_id(network.subnet(Survey("/var/lib/twofold")))["subnet"]
    assert (fact.status, fact.value) == ("ok", "10.209.0.0/22 on tf0, MTU 1400")


@pytest.mark.parametrize(
    ("result", "status", "word"),
    [
        (KvmProbe(usable=True, reason="", instructions_per_second=1.33e8), "ok", "133.0 million"),
        (
            KvmProbe(usable=False, reason="it is slow", instructions_per_second=2.3e6),
            "degraded",
            "2.3 million",
        ),
        (KvmProbe(usable=False, reason="there is no /dev/kvm"), "degraded", "not usable"),
    ],
)
def test_kvm_is_judged_by_its_figure(
    monkeypatch: pytest.MonkeyPatch, result: KvmProbe, status: str, word: str
) -> None:
    monkeypatch.setattr(machines.kvm_probe, "probe", lambda cache: result)
    fact = by_id(machines.acceleration(Survey()))["kvm"]
    assert fact.status == status
    assert word in fact.value
    assert not fact.required


def test_missing_programs_come_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "program", lambda name: None)
    monkeypatch.setattr(machines, "program", lambda name: None)
    monkeypatch.setattr(machines.os, "access", lambda path, mode: False)
    facts = by_id([*images.programs(Survey()), *machines.qemu(Survey())])
    assert all(fact.status != "ok" for fact in facts.values())
    assert facts["mmdebstrap"].fix == "apt-get install mmdebstrap"
    assert facts["qemu"].fix == "apt-get install qemu-system-x86"


def test_another_processor_is_a_wish_not_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    (fact,) = machines.other_processors(Survey())
    monkeypatch.setattr(machines.os, "access", lambda path, mode: False)
    (bare,) = machines.other_processors(Survey())
    assert (fact.status, bare.status) == ("ok", "ok")
    assert "apt-get install qemu-system-arm; apt-get install qemu-user-static" in bare.value


@pytest.mark.parametrize(
    ("known", "status", "words"),
    [
        (osinfo.Status(version="20221130", systems=800, newest="2022-11-22"), "ok", "/etc/osinfo"),
        (osinfo.Status(version="20991231", systems=900, newest="2099-01-01"), "ok", "900 systems"),
        (osinfo.Status(version="", systems=14, newest=""), "degraded", "install osinfo-db"),
        (
            osinfo.Status(version="1", systems=1, newest="", warnings=("'/x.xml' was left out",)),
            "degraded",
            "left out",
        ),
    ],
)
def test_knowledge_of_operating_systems(
    monkeypatch: pytest.MonkeyPatch, known: osinfo.Status, status: str, words: str
) -> None:
    monkeypatch.setattr(machines.osinfo, "status", lambda: known)
    fact = by_id(machines.systems(Survey()))["osinfo-db"]
    assert fact.status == status
    assert words in f"{fact.value} {fact.reason} {fact.fix}"
    assert not fact.required
