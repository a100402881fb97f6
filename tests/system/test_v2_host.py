"""Twofold on hosts unlike this one: pure cgroup v2 and v1 alone, both under systemd, its unit.

Both machines are virtual ones of ours, without KVM, and boot at the same time; a command in them
takes about a second. Each test leaves its host as it was.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import host_lab
import pytest
from host_lab import Host, Runner

pytestmark = pytest.mark.timeout(900)  # two machines boot; much slower beside other work
CLONE = Path(__file__).resolve().parents[2]
MODES = ("v2", "v1")


@pytest.fixture(scope="module")
def hosts(
    request: pytest.FixtureRequest,
    twofold: Runner,
    twofold_root: str,
    alpine_image: str,
    clone: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Host]]:
    modes = MODES if request.config.getoption("--slow") else MODES[:1]
    image = host_lab.build_image(twofold)
    scratch = tmp_path_factory.mktemp("hosts")
    host_lab.pack_checkout(clone, scratch / "checkout.erofs")
    store = Path(twofold_root) / "images"
    host_lab.make_state(store, [alpine_image, image], scratch / "state.ext4", scratch)

    def boot(mode: str) -> Host:
        share = scratch / mode
        share.mkdir()
        (share / "checkout.erofs").hardlink_to(scratch / "checkout.erofs")
        host_lab.copy_sparse(scratch / "state.ext4", share / "state.ext4")
        return host_lab.boot(twofold, f"host-{mode}", share, clone, v1_only=mode == "v1")

    try:
        with ThreadPoolExecutor() as pool:
            yield dict(zip(modes, pool.map(boot, modes), strict=True))
    finally:
        for mode in modes:
            twofold("rm", "-f", f"host-{mode}")


@pytest.fixture(params=["v2", pytest.param("v1", marks=pytest.mark.slow)])
def host(request: pytest.FixtureRequest, hosts: dict[str, Host]) -> Host:
    return hosts[request.param]


@pytest.fixture
def v2(hosts: dict[str, Host]) -> Host:
    return hosts["v2"]


def mode_of(host: Host) -> str:
    return host.name.removeprefix("host-")


@pytest.fixture(scope="module")
def box(hosts: dict[str, Host]) -> str:
    """A container on each host that lives through all tests."""
    script = "echo started; while :; do printf 'HTTP/1.0 200 OK\\n\\nhello\\n' | nc -l -p 80; done"
    for host in hosts.values():
        host.twofold(
            *("run", "-d", "--name", "box", "-p", "8080:80"),
            *("--memory", "64m", "--pids", "30", "--cpus", "0.5", "alpine", "sh", "-c", script),
        )
    return "box"


def test_the_doctor_knows_the_control_groups(host: Host) -> None:
    facts = {fact["id"]: fact for fact in json.loads(host.twofold("doctor", "--json"))}
    assert facts["cgroup-mode"]["value"] == mode_of(host)
    for name in ("cpu", "memory", "pids", "devices", "freezer"):
        assert facts[f"cgroup-{name}"]["status"] == "ok", facts[f"cgroup-{name}"]
    assert facts["service-manager"]["value"] == "systemd"


@pytest.mark.parametrize("trial", ["mounts", "links"])
def test_the_guest_kernel_has_what_a_host_needs(v2: Host, trial: str) -> None:
    """Asked without the doctor's deadline: these are processes, and slow here."""
    script = "mkdir /var/lib/twofold/trial; cd /; exec $1/.venv/bin/python -m $2 $3 $4 tftrial"
    module = "twofold.daemon.doctor.trial"
    try:
        said = v2.sh(script, str(CLONE), module, trial, "/var/lib/twofold/trial")
    finally:
        v2.sh("rm -rf /var/lib/twofold/trial")
    assert [why for why in json.loads(said).values() if why] == []


def test_containers_run_and_are_reached(host: Host, box: str) -> None:
    assert host.twofold("exec", box, "echo", "inside") == "inside\n"
    assert "started" in host.twofold("logs", box)
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/').read())"
    assert "hello" in host.sh('python3 -c "$1"', fetch)
    copied = host.sh('twofold cp "$1:/etc/alpine-release" /tmp/copied; cat /tmp/copied', box)
    assert copied.startswith("3.")
    assert host.twofold("run", "--rm", "alpine", "id", "-u") == "0\n"


def test_limits_are_written_and_kept(host: Host, box: str) -> None:
    files = {
        "v2": {"memory.max": "67108864", "pids.max": "30", "cpu.max": "50000 100000"},
        "v1": {
            "memory/memory.limit_in_bytes": "67108864",
            "pids/pids.max": "30",
            "cpu/cpu.cfs_quota_us": "50000",
        },
    }[mode_of(host)]
    group = host.cgroup_of(box)
    for name, value in files.items():
        folder, _, file = name.rpartition("/")
        path = f"/sys/fs/cgroup/{folder}/{group}/{file}"
        assert host.sh(f"cat {path}").strip() == value, name
    busy = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"
    host.twofold("exec", box, "sh", "-c", busy)
    stat = host.sh(f"cat /sys/fs/cgroup/{'cpu/' * (mode_of(host) == 'v1')}{group}/cpu.stat")
    assert int(stat.split("nr_throttled ")[1].split()[0]) > 0


def test_out_of_memory_is_told(host: Host) -> None:
    done = host.run(
        "twofold", "run", "--name", "oom", "--memory", "24m", "alpine", "tail", "/dev/zero"
    )
    try:
        assert done.returncode == 137, done.stderr
        assert json.loads(host.twofold("show", "--json", "oom"))["oom_killed"] is True
    finally:
        host.twofold("rm", "oom")


def test_too_many_processes_are_refused(host: Host) -> None:
    forks = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; wait"
    done = host.run("twofold", "run", "--rm", "--pids", "8", "alpine", "sh", "-c", forks)
    assert done.returncode != 0
    assert b"Resource temporarily unavailable" in done.stderr


def test_pause_stops_every_process(host: Host, box: str) -> None:
    state = {"v2": "cgroup.events", "v1": "freezer.state"}[mode_of(host)]
    path = f"/sys/fs/cgroup/{'freezer/' * (mode_of(host) == 'v1')}{host.cgroup_of(box)}/{state}"
    host.twofold("pause", box)
    try:
        assert {"v2": "frozen 1", "v1": "FROZEN"}[mode_of(host)] in host.sh(f"cat {path}")
    finally:
        host.twofold("resume", box)
    assert host.twofold("exec", box, "echo", "back") == "back\n"


def test_devices_are_kept_away_by_the_control_group(host: Host, box: str) -> None:
    """Asked with the host's own rights from within the group: only its filter can refuse."""
    group = f"/sys/fs/cgroup/{'devices/' * (mode_of(host) == 'v1')}{host.cgroup_of(box)}"
    script = f"""
        exec 2>&1
        dd if=/dev/loop-control of=/dev/null count=0 && echo before
        echo $$ >{group}/cgroup.procs
        dd if=/dev/null of=/dev/null count=0 && echo null
        dd if=/dev/loop-control of=/dev/null count=0 || echo refused
    """
    said = host.sh(script)
    assert "before" in said
    assert "null" in said
    assert "refused" in said
    assert "not permitted" in said


# Of the tests of the OCI runtime, those that this host shows and others do not.
CGROUPS, LABELS = "tests/system/test_oci_cgroups.py", "tests/system/test_oci_labels.py"
FEW = (f"{CGROUPS}::test_ownership_of_the_group", f"{LABELS}::test_a_profile_confines[plain]")
OTHERS = (
    *("process", "hostile", "seccomp", "mounts"),
    *("devices", "features", "hooks", "lifecycle", "namespaces"),
)
# The machine's root is an overlay, which takes no upper directory of another, and no idmaps.
LAB = "/var/lib/oci-lab"
_PREPARE = """
mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security
mkdir -p /var/lib/twofold/tmp $1
mountpoint -q $1 || mount --bind /var/lib/twofold/tmp $1
chmod 1777 $1
"""
LONG = [pytest.mark.slow, pytest.mark.timeout(3700)]


@pytest.mark.parametrize(
    "selection",
    [
        FEW,
        pytest.param((LABELS, CGROUPS), marks=LONG),
        *(pytest.param((f"tests/system/test_oci_{name}.py",), marks=LONG) for name in OTHERS),
    ],
    ids=["few", "labels-cgroups", *OTHERS],
)
def test_the_oci_runtime_conforms_here_too(v2: Host, selection: tuple[str, ...]) -> None:
    """Pure v2, and a kernel with AppArmor. As a service of the machine: with all its rights."""
    v2.sh(_PREPARE, LAB)
    as_service = ("systemd-run", "--quiet", "--wait", "--pipe", f"--working-directory={CLONE}")
    python = ("-E", "PYTHONDONTWRITEBYTECODE=1", "-E", f"TWOFOLD_OCI_LAB_IN={LAB}")
    python += (f"{CLONE}/.venv/bin/python", "-m", "pytest")
    words = ("-p", "no:cacheprovider", "-rs", "--tb=short", *selection)
    timeout_s = 300 if selection == FEW else 3600
    done = v2.run(*as_service, *python, *words, timeout_s=timeout_s)
    said = done.stdout.decode(errors="replace")
    print(*selection, said.strip().rpartition("\n")[2])  # how many
    assert done.returncode == 0, said[-4000:]
    assert "does not run AppArmor" not in said, "skipped: it was not proved"


def test_killing_the_unit_kills_no_instance(host: Host, box: str) -> None:
    pid = host.sh("systemctl show --value -p MainPID twofold")
    before = host.twofold("exec", box, "cat", "/proc/1/stat")
    host.sh("systemctl kill -s KILL twofold")
    # Restarted by systemd; "start" waits until the daemon says that it is ready.
    host.sh("sleep 1.2; systemctl start twofold")
    assert host.sh("systemctl show --value -p MainPID twofold") != pid
    assert "running" in host.twofold("list")
    assert host.twofold("exec", box, "cat", "/proc/1/stat").split()[21] == before.split()[21]
    assert "left-over" not in host.sh("journalctl -u twofold --no-pager")


@pytest.mark.slow
def test_a_member_of_the_group_starts_the_daemon_by_its_socket(v2: Host, box: str) -> None:
    before = v2.twofold("exec", box, "cat", "/proc/1/stat")
    v2.sh("systemctl stop twofold; systemctl start twofold.socket; useradd -G twofold alice")
    try:
        said = v2.sh("runuser -u alice -- twofold run --rm alpine echo from alice", timeout_s=180)
        assert said == "from alice\n"
        assert v2.sh("systemctl is-active twofold") == "active\n"
        assert v2.twofold("exec", box, "cat", "/proc/1/stat").split()[21] == before.split()[21]
        mallory = v2.run("sh", "-c", "useradd mallory; runuser -u mallory -- twofold list")
        assert mallory.returncode == 125
        assert b"may not use" in mallory.stderr
    finally:
        v2.sh("userdel alice; userdel mallory; systemctl stop twofold twofold.socket")


def test_systemd_boots_in_a_container(v2: Host) -> None:
    v2.twofold("run", "-d", "--system", "--name", "init", host_lab.IMAGE)
    try:
        script = "until systemctl is-system-running --wait; do sleep 0.2; done"
        assert "running" in v2.twofold("exec", "init", "sh", "-c", script)
        assert "init.scope" in v2.twofold("exec", "init", "ls", "/sys/fs/cgroup")
    finally:
        v2.twofold("rm", "-f", "init")


@pytest.mark.slow
def test_systemd_in_a_container_is_refused_where_it_cannot_run(hosts: dict[str, Host]) -> None:
    done = hosts["v1"].run("twofold", "run", "-d", "--system", "--name", "init", host_lab.IMAGE)
    assert done.returncode == 125
    assert b"v1 alone" in done.stderr
    assert b"--vm" in done.stderr
    assert "init" not in hosts["v1"].twofold("list", "--all")


@pytest.mark.slow
def test_a_reboot_ends_instances_gently_and_brings_them_back(v2: Host) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.2; done"
    command = f"({script}) >>/root/said"
    v2.twofold("run", "-d", "--name", "back", "--restart", "always", "alpine", "sh", "-c", command)
    try:
        v2.sh("systemctl enable twofold")
        v2.outer("restart", "-t", "150", v2.name, check=True, timeout_s=400)
        v2.wait_until_up()
        assert "running" in v2.twofold("list", timeout_s=240)
        assert v2.twofold("exec", "back", "cat", "/root/said") == "hello\nbye\nhello\n"
    finally:
        v2.sh("systemctl disable twofold; twofold rm -f back")
