"""``linux.seccomp`` and ``linux.personality``: system calls tried from inside."""

import array
import ctypes
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from oci_lab import ABSENT, Lab
from oci_spec import SECCOMP_ACTIONS, SECCOMP_FLAGS, SECCOMP_OPERATORS, beyond_runc, proves, refutes

ACTION = "linux.seccomp.syscalls[].action: SCMP_ACT_"
OPERATOR = "linux.seccomp.syscalls[].args[].op: SCMP_CMP_"
FLAG = "linux.seccomp.flags: SECCOMP_FILTER_FLAG_"
MKDIR = "/bin/mkdir /tmp/d 2>&1; echo $?"  # by its path, so that the shell does not do it itself
ARCHITECTURES = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]


def profile(*rules: dict[str, Any], default: str = "ALLOW", **more: Any) -> dict[str, Any]:
    return {"linux.seccomp": {"defaultAction": f"SCMP_ACT_{default}", "syscalls": rules, **more}}


def rule(names: str, action: str, **more: Any) -> dict[str, Any]:
    return {"names": names.split(), "action": f"SCMP_ACT_{action}", **more}


def every_call_but(*names: str) -> str:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    native = library.seccomp_arch_native()
    found = (library.seccomp_syscall_resolve_num_arch(native, number) for number in range(600))
    texts = [name.decode() for name in found if name]
    assert len(texts) > 300
    return " ".join(name for name in texts if name not in names)


def host_python() -> dict[str, Any]:
    """Mounts that bring the host's interpreter, for calls that no shell makes."""
    places = [path for path in ("/usr", "/lib", "/lib64") if os.path.isdir(path)]
    return {
        "mounts+": [
            {"destination": path, "source": path, "type": "none", "options": ["bind", "ro"]}
            for path in places
        ]
    }


def python(oci: Lab, program: str, changes: dict[str, Any]) -> tuple[int, str]:
    changes = {**host_python(), **changes, "process.args": ["/usr/bin/python3", "-c", program]}
    done = oci.run("", changes, check=False)
    return done.code, done.out.strip()


# ------------------------------------------------------------------- actions


@proves(f"{ACTION}ERRNO", "linux.seccomp.syscalls[].names", "linux.seccomp.syscalls[].errnoRet")
@refutes(f"{ACTION}ERRNO", "linux.seccomp.syscalls[].names", "linux.seccomp.syscalls[].errnoRet")
def test_errno(oci: Lab) -> None:
    assert oci.output(MKDIR) == "0"
    said = oci.output(MKDIR, profile(rule("mkdir mkdirat", "ERRNO")))
    assert "Operation not permitted" in said
    said = oci.output(MKDIR, profile(rule("mkdir mkdirat", "ERRNO", errnoRet=28)))
    assert "No space left on device" in said
    assert oci.output(MKDIR, profile(rule("rmdir", "ERRNO"))) == "0"
    assert oci.output(MKDIR, profile(rule("rmdir not_a_system_call", "ERRNO"))) == "0"


@proves("linux.seccomp.defaultAction", "linux.seccomp.defaultErrnoRet", f"{ACTION}ALLOW")
@refutes("linux.seccomp.defaultAction", "linux.seccomp.defaultErrnoRet", f"{ACTION}ALLOW")
def test_an_allow_list(oci: Lab) -> None:
    listed = rule(every_call_but("mkdir", "mkdirat"), "ALLOW")
    said = oci.output(MKDIR, profile(listed, default="ERRNO", defaultErrnoRet=28))
    assert "No space left on device" in said
    said = oci.output(MKDIR, profile(listed, default="ERRNO"))
    assert "Operation not permitted" in said
    more = rule("mkdir mkdirat", "ALLOW")
    assert oci.output(MKDIR, profile(listed, more, default="ERRNO")) == "0"


@proves(f"{ACTION}KILL", f"{ACTION}KILL_THREAD", f"{ACTION}KILL_PROCESS", f"{ACTION}TRAP")
@refutes(f"{ACTION}KILL", f"{ACTION}KILL_THREAD", f"{ACTION}KILL_PROCESS", f"{ACTION}TRAP")
@pytest.mark.parametrize("action", ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP"])
def test_calls_that_kill(oci: Lab, action: str) -> None:
    said = oci.output(MKDIR, profile(rule("mkdir mkdirat", action)))
    assert said.splitlines()[-1] == "159"  # 128 + SIGSYS
    assert oci.output(MKDIR) == "0"


@proves(f"{ACTION}KILL", f"{ACTION}KILL_THREAD", f"{ACTION}KILL_PROCESS")
@refutes(f"{ACTION}KILL_PROCESS", f"{ACTION}KILL_THREAD")
def test_a_thread_or_the_whole_process(oci: Lab) -> None:
    program = (
        "import os, threading, time\n"
        "def call():\n    print('thread', flush=True); os.mkdir('/tmp/x')\n"
        "threading.Thread(target=call, daemon=True).start(); time.sleep(0.5)\n"
        "print('alive', flush=True); os._exit(0)"
    )
    assert python(oci, program, profile(rule("mkdir", "KILL_THREAD"))) == (0, "thread\nalive")
    assert python(oci, program, profile(rule("mkdir", "KILL"))) == (0, "thread\nalive")
    code, said = python(oci, program, profile(rule("mkdir", "KILL_PROCESS")))
    assert (code, said) == (159, "thread")


@proves(f"{ACTION}TRAP")
@refutes(f"{ACTION}TRAP")
def test_a_trap_can_be_caught(oci: Lab) -> None:
    program = (
        "import os, signal\n"
        "signal.signal(signal.SIGSYS, lambda *_: print('caught'))\n"
        "try: os.mkdir('/tmp/x')\nexcept OSError: pass\nprint('on')"
    )
    assert python(oci, program, profile(rule("mkdir", "TRAP"))) == (0, "caught\non")
    assert python(oci, program, {}) == (0, "on")


@proves(f"{ACTION}TRACE")
@refutes(f"{ACTION}TRACE")
def test_trace_without_a_tracer(oci: Lab) -> None:
    said = oci.output(MKDIR, profile(rule("mkdir mkdirat", "TRACE", errnoRet=7)))
    assert "Function not implemented" in said
    assert oci.output(MKDIR) == "0"


@proves(f"{ACTION}LOG")
@refutes(f"{ACTION}LOG")
def test_log_lets_the_call_pass_and_the_filter_is_there(oci: Lab) -> None:
    probe = f"{MKDIR}; grep ^Seccomp: /proc/self/status"
    said = oci.output(probe, profile(rule("mkdir mkdirat", "LOG"))).split()
    assert said == ["0", "Seccomp:", "2"]
    assert oci.output(probe).split() == ["0", "Seccomp:", "0"]


# ------------------------------------------------------------------- arguments

CHMOD = "touch /tmp/f; for m in 600 640 700; do /bin/chmod $m /tmp/f 2>/dev/null || echo $m; done"
_CONDITIONS: dict[str, tuple[dict[str, int], set[str]]] = {
    "EQ": ({"value": 0o640}, {"640"}),
    "NE": ({"value": 0o640}, {"600", "700"}),
    "LT": ({"value": 0o640}, {"600"}),
    "LE": ({"value": 0o640}, {"600", "640"}),
    "GE": ({"value": 0o640}, {"640", "700"}),
    "GT": ({"value": 0o640}, {"700"}),
    "MASKED_EQ": ({"value": 0o070, "valueTwo": 0o040}, {"640"}),
}


def refused_modes(oci: Lab, *conditions: dict[str, Any]) -> set[str]:
    return set(oci.output(CHMOD, profile(rule("chmod", "ERRNO", args=conditions))).split())


@proves(*(f"{OPERATOR}{name}" for name in _CONDITIONS))
@refutes(*(f"{OPERATOR}{name}" for name in _CONDITIONS))
@pytest.mark.parametrize("operator", _CONDITIONS)
def test_operators(oci: Lab, operator: str) -> None:
    """Each refuses exactly the modes it should, and lets the others pass."""
    values, refused = _CONDITIONS[operator]
    assert refused_modes(oci, {"index": 1, "op": f"SCMP_CMP_{operator}", **values}) == refused


@proves(*(f"linux.seccomp.syscalls[].args[].{name}" for name in ("index", "value", "valueTwo")))
@refutes(*(f"linux.seccomp.syscalls[].args[].{name}" for name in ("index", "value", "valueTwo")))
def test_index_and_values(oci: Lab) -> None:
    equal = {"index": 1, "value": 0o640, "op": "SCMP_CMP_EQ"}
    assert refused_modes(oci, equal) == {"640"}
    assert refused_modes(oci, {**equal, "index": 0}) == set()
    assert refused_modes(oci, {**equal, "value": 0o700}) == {"700"}
    masked = {"index": 1, "value": 0o070, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    assert refused_modes(oci, masked) == {"600", "700"}
    large = {"index": 1, "value": 1 << 40, "op": "SCMP_CMP_LT"}  # above 32 bits
    assert refused_modes(oci, large) == {"600", "640", "700"}
    assert refused_modes(oci, {**large, "op": "SCMP_CMP_GT"}) == set()
    other = {"index": 2, "value": 1 << 63, "op": "SCMP_CMP_GE"}
    assert refused_modes(oci, equal, other) in (set(), {"640"})  # both must hold


# ------------------------------------------------------------------- architectures and flags

_INT80_GETPID = bytes.fromhex("b814000000cd80c3")


@proves("linux.seccomp.architectures")
@refutes("linux.seccomp.architectures")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="int 0x80 is x86")
def test_calls_of_another_architecture(oci: Lab) -> None:
    """An i386 call from a 64-bit process: through only if the architecture is listed."""
    program = (
        "import ctypes, mmap\n"
        f"code = {_INT80_GETPID!r}\n"
        "page = mmap.mmap(-1, 4096, prot=7); page.write(code)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(at)())"
    )
    native = profile(rule("rmdir", "ERRNO"), architectures=ARCHITECTURES[:1])
    code, said = python(oci, program, native)
    assert code == 159, said
    assert python(oci, program, profile(rule("rmdir", "ERRNO"), architectures=ARCHITECTURES)) == (
        *(0, "1"),
    )
    denied = profile(rule("getpid", "ERRNO", errnoRet=77), architectures=ARCHITECTURES)
    assert python(oci, program, denied) == (0, "-77")


@proves(*(f"{FLAG}{name}" for name in SECCOMP_FLAGS))
@refutes(*(f"{FLAG}{name}" for name in SECCOMP_FLAGS))
@pytest.mark.parametrize("flag", SECCOMP_FLAGS)
@beyond_runc("1.1 knows no flags")
def test_flags(oci: Lab, flag: str) -> None:
    """None has an effect that a shell could see; the filter is there, and a wrong one is not."""
    name = f"SECCOMP_FILTER_FLAG_{flag}"
    if flag == "WAIT_KILLABLE_RECV":  # the kernel takes it with a listener only
        with Agent(oci, metadata="m") as agent:
            container = oci.container(profile(*agent.rules, flags=[name], **agent.listener))
            with container.life():
                agent.await_message()
        oci.refused(profile(rule("mkdir", "ERRNO"), flags=[name]), "linux.seccomp.flags", name)
        return
    said = oci.output(MKDIR, profile(rule("mkdir mkdirat", "ERRNO"), flags=[name]))
    assert "Operation not permitted" in said
    oci.refused(profile(rule("mkdir", "ERRNO"), flags=[f"{name}X"]), "linux.seccomp.flags", name)


# ------------------------------------------------------------------- the listener


class Agent:
    """Receives the listener and answers ``mkdir`` with an errno of its own."""

    def __init__(self, oci: Lab, *, metadata: str = "", errno: int = 28) -> None:
        self.path = str(oci.home / "agent.sock")
        self.listener: dict[str, Any] = {"listenerPath": self.path}
        if metadata:
            self.listener["listenerMetadata"] = metadata
        self.rules = (rule("mkdir mkdirat", "NOTIFY"),)
        self.errno = errno
        self.message: dict[str, Any] = {}
        self.names: list[str] = []
        self.rest = b"?"
        self._told = threading.Event()

    def __enter__(self) -> "Agent":
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(self.path)
        self.socket.listen()
        self.socket.settimeout(20)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        os.unlink(self.path)
        self.thread.join(timeout=10)

    def await_message(self) -> dict[str, Any]:
        assert self._told.wait(timeout=20), "the runtime said nothing to the agent"
        return self.message

    def _serve(self) -> None:
        try:
            connection, _ = self.socket.accept()
        except OSError:
            return
        with connection:
            data, controls, _, _ = connection.recvmsg(65536, 256)
            while piece := connection.recv(65536):
                data += piece
        descriptors = array.array("i", controls[0][2])
        self.message = json.loads(data)
        self._told.set()
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        self._answer(descriptors[0])

    def _answer(self, listener: int) -> None:
        request, size = 0xC0502100, 80  # SECCOMP_IOCTL_NOTIF_RECV
        try:
            while True:
                buffer = bytearray(size)
                fcntl.ioctl(listener, request, buffer)
                identity, _, _, number = struct.unpack_from("<QIIi", buffer)
                self.names.append(str(number))
                reply = struct.pack("<QqiI", identity, 0, -self.errno, 0)
                fcntl.ioctl(listener, 0xC0182101, reply)
        except OSError:
            os.close(listener)  # the container is gone


@proves(f"{ACTION}NOTIFY", "linux.seccomp.listenerPath", "linux.seccomp.listenerMetadata")
def test_an_agent_answers_for_the_kernel(oci: Lab) -> None:
    with Agent(oci, metadata="opaque=1") as agent:
        changes = {**profile(*agent.rules, **agent.listener), "annotations": {"a.b": "c"}}
        container = oci.container(changes, script=f"{MKDIR}; echo ready; exec sleep 60")
        with container.life():
            said = container.await_output()
            assert "No space left on device" in said
            message = agent.await_message()
            assert message["fds"] == ["seccompFd"]
            assert message["metadata"] == "opaque=1"
            assert message["pid"] == container.pid()
            assert message["state"]["id"] == container.name
            assert message["state"]["pid"] == container.pid()
            assert message["state"]["status"] in ("creating", "created")
            assert message["state"]["bundle"] == str(container.bundle)
            assert message["ociVersion"]


@refutes(f"{ACTION}NOTIFY", "linux.seccomp.listenerPath", "linux.seccomp.listenerMetadata")
def test_without_an_agent(oci: Lab) -> None:
    notify = rule("mkdir", "NOTIFY")
    nobody = str(oci.home / "nobody.sock")
    oci.refused(profile(notify, listenerPath=nobody), "linux.seccomp.listenerPath", nobody)
    oci.refused(profile(notify), "linux.seccomp.listenerPath")
    oci.refused(profile(notify, listenerPath=7), "linux.seccomp.listenerPath")
    if not oci.is_runc:
        oci.refused(profile(notify, listenerMetadata="x"), "linux.seccomp.listener")
    # Without the action the path is ignored, whatever it is.
    assert oci.output(MKDIR, profile(rule("rmdir", "ERRNO"), listenerPath=nobody)) == "0"


# ------------------------------------------------------------------- refusals


@refutes(*(f"{ACTION}{name}" for name in SECCOMP_ACTIONS))
@refutes(*(f"{OPERATOR}{name}" for name in SECCOMP_OPERATORS))
@refutes("linux.seccomp.syscalls[].errnoRet", "linux.seccomp.defaultErrnoRet")
@pytest.mark.parametrize(
    ("seccomp", "words"),
    [
        ({}, ("linux.seccomp.defaultAction",)),
        ({"defaultAction": "ALLOW"}, ("linux.seccomp.defaultAction", "ALLOW")),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 5},
            ("linux.seccomp.defaultErrnoRet", "5"),
        ),
        (profile(rule("mkdir", "MAYBE")), ("linux.seccomp.syscalls[0].action", "MAYBE")),
        (profile(rule("mkdir", "ALLOW", errnoRet=5)), ("linux.seccomp.syscalls[0].errnoRet",)),
        (profile(rule("mkdir", "KILL", errnoRet=5)), ("linux.seccomp.syscalls[0].errnoRet",)),
        (profile(rule("mkdir", "ERRNO", errnoRet=-1)), ("linux.seccomp.syscalls[0].errnoRet",)),
        (profile(rule("", "ERRNO")), ("linux.seccomp.syscalls[0].names",)),
        (profile({"action": "SCMP_ACT_ERRNO"}), ("linux.seccomp.syscalls[0].names",)),
        (profile({"names": ["mkdir"]}), ("linux.seccomp.syscalls[0].action",)),
        (profile(architectures=["SCMP_ARCH_Z80"]), ("linux.seccomp.architectures[0]", "Z80")),
        *(
            (profile(rule("chmod", "ERRNO", args=[args])), ("linux.seccomp.syscalls[0].args[0]",))
            for args in (
                {"index": 6, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": -1, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": -1, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 1 << 64, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 1, "op": "EQ"},
                {"index": 1, "value": 1},
                {"value": 1, "op": "SCMP_CMP_EQ"},
            )
        ),
    ],
)
@beyond_runc("takes several")
def test_profiles_that_are_none_are_refused(
    oci: Lab, seccomp: dict[str, Any], words: Sequence[str]
) -> None:
    value = seccomp.get("linux.seccomp", seccomp)
    oci.refused({"linux.seccomp": value}, *words)


def test_an_exec_has_the_filter_too(oci: Lab) -> None:
    container = oci.container(profile(rule("mkdir mkdirat", "ERRNO")))
    with container.life():
        assert "Operation not permitted" in container.exec(MKDIR).out


def test_a_filter_without_no_new_privileges(oci: Lab) -> None:
    """Loaded while the process still may, so that the payload keeps set-user-ID programs."""
    changes = {**profile(rule("mkdir mkdirat", "ERRNO")), "process.noNewPrivileges": False}
    probe = f"{MKDIR}; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status"
    said = oci.output(probe, changes).split()
    assert said[-4:] == ["NoNewPrivs:", "0", "Seccomp:", "2"]
    changes["process.user.uid"] = 1000
    changes["process.capabilities"] = {}
    assert oci.output(probe, changes).split()[-4:] == ["NoNewPrivs:", "0", "Seccomp:", "2"]


# ------------------------------------------------------------------- personality


@beyond_runc("1.1 knows no personality")
@proves("linux.personality.domain")
@refutes("linux.personality.domain")
def test_personality(oci: Lab) -> None:
    changes = {"linux.personality": {"domain": "LINUX32"}}
    assert oci.output("uname -m", changes) in ("i686", "armv8l")
    assert oci.output("uname -m", {"linux.personality": {"domain": "LINUX"}}) == os.uname().machine
    assert oci.output("uname -m") == os.uname().machine
    for value in ("HURD", 5, ABSENT):
        domain = {} if value is ABSENT else {"domain": value}
        oci.refused({"linux.personality": domain}, "linux.personality.domain")
    container = oci.container(changes)
    with container.life():
        assert container.exec("uname -m").out.strip() in ("i686", "armv8l")


@beyond_runc("1.1 knows no personality")
@proves("linux.personality.flags")
@refutes("linux.personality.flags")
def test_personality_has_no_flags_yet(oci: Lab) -> None:
    """The specification knows none, so an empty list is the only one there is."""
    changes: dict[str, Any] = {"linux.personality": {"domain": "LINUX32", "flags": []}}
    assert oci.output("uname -m", changes) in ("i686", "armv8l")
    changes["linux.personality"]["flags"] = ["ADDR_NO_RANDOMIZE"]
    oci.refused(changes, "linux.personality.flags", "ADDR_NO_RANDOMIZE")


def test_the_probe_itself() -> None:
    """The test's own notion of the ioctl numbers, against the kernel's header layout."""
    assert struct.calcsize("<QIIi") == 20
    assert ctypes.sizeof(ctypes.c_uint64) == 8
    assert Path("/proc/sys/kernel/seccomp/actions_avail").exists()
