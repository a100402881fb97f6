"""AppArmor, where the kernel runs it: in the Debian machine of ``test_v2_host.py``.

A host without skips this file; that such a label is refused there is in ``test_oci_process.py``.
"""

import subprocess
from collections.abc import Iterator

import pytest
from oci_lab import Lab, user_namespace
from oci_spec import only_where, proves, refutes

from twofold.linux import labels

pytestmark = pytest.mark.skipif(
    not labels.apparmor_active(), reason="this kernel does not run AppArmor"
)

CURRENT = "cat /proc/self/attr/apparmor/current 2>/dev/null || cat /proc/self/attr/current"
SECRET = "echo x >/etc/secret && cat /etc/secret"
_BODY = "flags=(attach_disconnected) { capability, network, mount, signal, ptrace, file, %s }"


def load(text: str, *, remove: bool = False) -> None:
    flag = "--remove" if remove else "--replace"
    words = ["apparmor_parser", flag, "--skip-cache", "--quiet"]
    subprocess.run(words, input=text, text=True, check=True, timeout=60)


@pytest.fixture
def profile(oci: Lab) -> Iterator[str]:
    """A profile that allows everything but one file."""
    name = f"{oci.token}-strict"
    text = f"profile {name} {_BODY % 'deny /etc/secret rw,'}"
    load(text)
    yield name
    load(text, remove=True)


@only_where("where the kernel runs AppArmor; refused elsewhere", "process.apparmorProfile")
@proves("process.apparmorProfile")
@pytest.mark.parametrize("userns", [False, True], ids=["plain", "userns"])
def test_a_profile_confines(oci: Lab, profile: str, userns: bool) -> None:
    changes = {"process.apparmorProfile": profile, **(user_namespace() if userns else {})}
    prepare = oci.give if userns else (lambda bundle: bundle)
    said = oci.output(f"{CURRENT}; {SECRET}; true", changes, prepare=prepare)
    assert said == f"{profile} (enforce)"


@refutes("process.apparmorProfile")
@pytest.mark.parametrize("word", ["", "unconfined"])
def test_without_a_profile_nothing_confines(oci: Lab, profile: str, word: str) -> None:
    said = oci.output(f"{CURRENT}; {SECRET}", {"process.apparmorProfile": word})
    assert said.split() == ["unconfined", "x"]


@refutes("process.apparmorProfile")
@pytest.mark.parametrize("name", ["oci-lab-no-such", "two words", "../x"])
def test_a_profile_that_is_not_loaded_is_refused(oci: Lab, name: str) -> None:
    oci.refused({"process.apparmorProfile": name}, "process.apparmorProfile", name)


@proves("process.apparmorProfile")
def test_exec_is_confined_as_well(oci: Lab, profile: str) -> None:
    container = oci.container({"process.apparmorProfile": profile})
    with container.life():
        assert container.exec(CURRENT).out.strip() == f"{profile} (enforce)"
        assert container.exec(SECRET, check=False).code != 0


def test_exec_under_another_profile(oci: Lab, profile: str) -> None:
    container = oci.container()
    with container.life():
        assert container.exec(CURRENT).out.strip() == "unconfined"
        said = container.exec(CURRENT, "--apparmor", profile)
        assert said.out.strip() == f"{profile} (enforce)"
        refused = container.exec("true", "--apparmor", "oci-lab-no-such", check=False)
        assert refused.code == 255
        assert "oci-lab-no-such" in refused.err
