"""SELinux, where the kernel runs it: in the machine of ``test_selinux_host.py``.

A host without skips this file; that labels are refused there is in ``test_oci_process.py``.
"""

import os
from pathlib import Path

import pytest
from oci_lab import MQUEUE, Container, Lab, tmpfs, user_namespace
from oci_spec import only_where, proves, refutes

from twofold.linux import labels

pytestmark = pytest.mark.skipif(
    not labels.selinux_active(), reason="this kernel does not run SELinux"
)

# The types of sVirt: Debian's policy brings none for containers.
PROCESS = "system_u:system_r:svirt_t:s0:c1,c2"
OTHER = "system_u:system_r:svirt_t:s0:c3,c4"
FILES = "system_u:object_r:svirt_image_t:s0:c1,c2"
CURRENT = "tr -d '\\0' </proc/self/attr/current"
WHERE = "where the kernel runs SELinux; refused elsewhere"
WRONG = ["no:such:label:s0", "two words", "system_u:system_r:svirt_t:s0:c9999", f"{FILES},x=y"]


def in_words(userns: bool) -> dict[str, object]:
    return user_namespace() if userns else {}


@only_where(WHERE, "process.selinuxLabel")
@proves("process.selinuxLabel")
@pytest.mark.parametrize("userns", [False, True], ids=["plain", "userns"])
def test_a_process_has_its_label(oci: Lab, userns: bool) -> None:
    prepare = oci.give if userns else (lambda bundle: bundle)
    changes = {"process.selinuxLabel": PROCESS, **in_words(userns)}
    assert oci.output(CURRENT, changes, prepare=prepare) == PROCESS


@proves("process.selinuxLabel")
def test_exec_has_the_label_as_well_or_another(oci: Lab) -> None:
    container = oci.container({"process.selinuxLabel": PROCESS})
    with container.life():
        assert container.exec(CURRENT).out.strip() == PROCESS
        assert container.exec(CURRENT, "--process-label", OTHER).out.strip() == OTHER
        refused = container.exec("true", "--process-label", "no:such:label:s0", check=False)
        assert refused.code == 255
        assert "no:such:label:s0" in refused.err


@refutes("process.selinuxLabel")
def test_without_a_label_it_is_the_callers(oci: Lab) -> None:
    ours = Path("/proc/self/attr/current").read_text().rstrip("\0\n")
    assert oci.output(CURRENT, {"process.selinuxLabel": ""}) == ours != PROCESS


@only_where(WHERE, "linux.mountLabel")
@proves("linux.mountLabel")
@pytest.mark.parametrize("userns", [False, True], ids=["plain", "userns"])
def test_new_file_systems_have_the_label(oci: Lab, userns: bool) -> None:
    """By the mount table from inside, and on the files themselves; not where there can be none."""
    prepare = oci.give if userns else (lambda bundle: bundle)
    changes = {"linux.mountLabel": FILES, "mounts+": [tmpfs("/own")], **in_words(userns)}
    bundle = prepare(oci.bundle(changes, script="touch /own/f; echo ready; exec sleep 60"))
    container = Container(oci, oci.name_of(bundle), bundle)
    with container.life():
        container.await_output()
        table = container.exec("cat /proc/self/mountinfo").out.splitlines()
        options = {line.split()[4]: line.split(" - ")[1] for line in table}
        for place in ("/dev", "/dev/pts", "/dev/shm", "/own"):
            assert f'context="{FILES}"' in options[place], (place, options[place])
        for place in ("/", "/proc", "/sys", "/dev/mqueue"):
            assert "context=" not in options[place], (place, options[place])
        root = f"/proc/{container.pid()}/root"
        for path in ("/own/f", "/dev/null", "/dev/shm", MQUEUE["destination"]):
            found = os.getxattr(root + str(path), "security.selinux").rstrip(b"\0").decode()
            assert found == FILES or (userns and path == "/dev/null"), (path, found)


@refutes("linux.mountLabel")
def test_without_a_label_no_file_system_has_one(oci: Lab) -> None:
    assert "context=" not in oci.output("cat /proc/self/mountinfo", {"linux.mountLabel": ""})


def test_a_context_of_its_own_wins(oci: Lab) -> None:
    own = FILES.replace("c1,c2", "c5")
    changes = {"linux.mountLabel": FILES, "mounts+": [tmpfs("/own", f"context={own}")]}
    said = oci.output("grep ' /own ' /proc/self/mountinfo", changes)
    assert own in said
    assert FILES not in said


@refutes("process.selinuxLabel", "linux.mountLabel")
@pytest.mark.parametrize("label", WRONG)
@pytest.mark.parametrize("field", ["process.selinuxLabel", "linux.mountLabel"])
def test_a_label_that_the_policy_does_not_know_is_refused(oci: Lab, field: str, label: str) -> None:
    oci.refused({field: label}, field, label, "knows no such label")
