"""The runtime's labels under SELinux: a Debian machine whose kernel runs it, with Debian's policy.

Permissive: labels are checked, set and seen, and what the policy makes of them is not ours to
test. The machine is a rig of ``guest_rig``, for the kernel must be told by its command line.
"""

from collections.abc import Iterator
from pathlib import Path

import host_lab
import pytest
from guest_rig import Guest
from host_lab import Runner

from twofold.hypervisor import kernel
from twofold.model.progress import silent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
IMAGE = "test-selinux-host"
PACKAGES = (
    *("busybox-static", "libseccomp2", "policycoreutils", "python3", "selinux-policy-default"),
    "selinux-utils",
)
# $1 is the checkout, on the machine's third disk.
_PREPARE = """
set -e
mkdir -p "$1"
mount -t erofs -o ro /dev/vdc "$1"
mountpoint -q /sys/fs/selinux || mount -t selinuxfs selinuxfs /sys/fs/selinux
printf 'SELINUX=permissive\\nSELINUXTYPE=default\\n' >/etc/selinux/config
load_policy
getenforce
"""
_TESTS = 'cd "$1"; exec .venv/bin/python -m pytest -p no:cacheprovider -rs --tb=short $2'


@pytest.fixture(scope="module")
def guest(
    twofold: Runner, twofold_root: str, clone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    host_lab.build_image(twofold, IMAGE, PACKAGES)
    folder = tmp_path_factory.mktemp("selinux")
    host_lab.pack_checkout(clone, folder / "checkout.erofs")
    host_lab.make_disk(Path(twofold_root) / "images", IMAGE, folder / "root.erofs")
    machine = Guest(
        kernel.ensure(f"{twofold_root}/kernels", silent),
        folder / "root.erofs",
        folder,
        memory_mib=1024,
        more_disk=folder / "checkout.erofs",
        kernel_arguments={"security": "selinux", "selinux": "1"},
        capabilities=None,
    )
    try:
        machine.ready()
        code, out, err = _sh(machine, _PREPARE, str(clone))
        assert (code, out) == (0, b"Permissive\n"), (out, err)
        yield machine
    finally:
        machine.close()


def _sh(guest: Guest, script: str, *arguments: str) -> tuple[int, bytes, bytes]:
    environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1"]
    words = ("bash", "-c", script, "bash", *arguments)
    return guest.run(*words, capabilities=None, env=environment)


def test_labels_are_set_and_wrong_ones_refused(guest: Guest, clone: Path) -> None:
    code, out, err = _sh(guest, _TESTS, str(clone), "tests/system/test_oci_selinux.py")
    said = out.decode(errors="replace")
    print(said[-600:])
    assert code == 0, said[-4000:] + err.decode(errors="replace")[-2000:]
    assert "skipped" not in said.splitlines()[-1]
