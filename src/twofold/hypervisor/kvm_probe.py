"""Does /dev/kvm really run guests, and how fast? Found out by running one.

That the device opens says nothing: where the kernel's KVM interprets guests (nested without
hardware support) they hang for minutes. So a one-page guest counts down a register and halts, and
the clock decides. It runs in a child process with a time limit, because KVM_RUN may never return.

This file is also that child (``python kvm_probe.py ITERATIONS``): standard library only. Decides
nothing: the caller picks the accelerator from ``usable``.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = "/dev/kvm"
# QEMU's own translator manages several hundred million; below this KVM would lose to it.
MINIMUM_INSTRUCTIONS_PER_SECOND = 50_000_000
_TIME_LIMIT_S = 20.0  # an interpreted guest takes two; beside other work ten times that
_START_LIMIT_S = 30.0
# QEMU's translator takes ten to twenty instructions for one of the guest's. A busy or emulated host
# slows a guest and its own programs alike, so what counts is how they compare.
_LEAST_PART = 20
_ROUNDS = 3
_TRUSTED_S = 0.02  # a shorter time says little
_SLOW_S = 0.1  # a longer one says all, whatever else goes on
_LINE_LIMIT_BYTES = 4096
_BEGUN = b"begun\n"
_ITERATIONS = 200_000  # 0.2 s where guests are interpreted; repeated, longer, where they are not
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

# From linux/kvm.h, the same on every architecture of interest.
_GET_API_VERSION, _CREATE_VM, _GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
_CREATE_VCPU, _RUN = 0xAE41, 0xAE80
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_REGS, _GET_SREGS, _SET_SREGS = 0x4090AE82, 0x8138AE83, 0x4138AE84
_EXIT_HLT = 5


@dataclass(frozen=True, kw_only=True)
class KvmProbe:
    """``reason`` is one sentence for the user, also when usable."""

    usable: bool
    reason: str
    instructions_per_second: float | None = None
    timed_out: bool = False


def probe(cache_file: str) -> KvmProbe:
    """The answer for this boot of the host: from ``cache_file`` when it was asked before.

    Takes a second or two the first time; when guests hang, as long as the limit. That is not
    kept: it may have been the other work of a busy host. Never raises; a cache that cannot be read
    or written only means asking again. Blocks: call it in a thread.
    """
    key = _cache_key()
    cached = _read_cache(cache_file, key)
    if cached is not None:
        return cached
    result = probe_now()
    if not result.timed_out:
        _write_cache(cache_file, key, result)
    return result


def probe_now() -> KvmProbe:
    """Ask the kernel, whatever was answered before."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return KvmProbe(usable=False, reason=f"there is no {DEVICE} on this host")
    except OSError as error:
        return KvmProbe(usable=False, reason=f"{DEVICE} cannot be opened: {error.strerror}")
    argv = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(_ITERATIONS)]
    child = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        bufsize=0,  # select does not know of lines that were read ahead
    )
    try:
        # On a busy host the interpreter alone may take longer than the guest is given.
        output = _read_line(child, _START_LIMIT_S)
        if output == _BEGUN:
            output = _read_line(child, _TIME_LIMIT_S)
        child.wait(1)
    except (TimeoutError, subprocess.TimeoutExpired):
        child.kill()
        try:
            child.wait(1)
        except subprocess.TimeoutExpired:
            pass  # stuck in the kernel: it dies when the kernel lets it, nobody waits for that
        return KvmProbe(
            usable=False,
            reason=f"a guest of one page did not finish within {_TIME_LIMIT_S:.0f} s",
            timed_out=True,
        )
    try:
        answer = json.loads(output)
    except ValueError:
        return KvmProbe(usable=False, reason=f"the probe ended with status {child.returncode}")
    if "error" in answer:
        return KvmProbe(usable=False, reason=f"{DEVICE} cannot run a guest: {answer['error']}")
    return judge(float(answer["instructions_per_second"]), native=answer["native"])


def _read_line(child: "subprocess.Popen[bytes]", timeout_s: float) -> bytes:
    """What the child says next, "" at its end. Raises TimeoutError."""
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], timeout_s)[0]:
        raise TimeoutError
    return child.stdout.readline(_LINE_LIMIT_BYTES)


def judge(instructions_per_second: float, *, native: float | None = None) -> KvmProbe:
    """Turn the measured speeds, the guest's and that of the same code outside, into the answer."""
    millions = instructions_per_second / 1e6
    least = MINIMUM_INSTRUCTIONS_PER_SECOND if native is None else native / _LEAST_PART
    usable = instructions_per_second >= least
    beside = "" if native is None else f", the host's programs {native / 1e6:,.0f}"
    if usable:
        reason = f"guests run on the processor ({millions:,.0f} million instructions/s{beside})"
    else:
        reason = (
            f"{DEVICE} interprets guests ({millions:.1f} million instructions/s{beside}): "
            "emulation by QEMU is faster"
        )
    return KvmProbe(usable=usable, reason=reason, instructions_per_second=instructions_per_second)


def _cache_key() -> dict[str, str]:
    try:
        with open(_BOOT_ID) as stream:
            boot = stream.read().strip()
        device = os.stat(DEVICE)
        # kvm-intel can be unloaded and loaded again, which makes a new device node.
        return {"boot_id": boot, "device": f"{device.st_ino} {device.st_ctime_ns} {device.st_mode}"}
    except FileNotFoundError:
        return {"boot_id": "", "device": ""}


def _read_cache(path: str, key: dict[str, str]) -> KvmProbe | None:
    try:
        with open(path) as stream:
            data = json.load(stream)
        if data["key"] != key or not key["boot_id"]:
            return None
        result = data["result"]
        speed = result["instructions_per_second"]
        return KvmProbe(
            usable=bool(result["usable"]),
            reason=str(result["reason"]),
            instructions_per_second=None if speed is None else float(speed),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(path: str, key: dict[str, str], result: KvmProbe) -> None:
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        fd, scratch = tempfile.mkstemp(prefix=".kvm-", dir=folder)
        with open(fd, "w") as stream:
            json.dump({"key": key, "result": asdict(result)}, stream)
        os.replace(scratch, path)
    except OSError:
        pass  # asked again the next time


# -- the child --------------------------------------------------------------------------------


def _count_down(iterations: int) -> float:
    """Run the guest and return instructions per second. Raises OSError or RuntimeError."""
    import fcntl
    import mmap
    import struct
    import time

    kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, _GET_API_VERSION, 0)
    if version != 12:
        raise RuntimeError(f"KVM API version {version} is not 12")
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, 4096, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    # dec ecx (66 49); jnz back to it (75 FC); hlt (F4), in 16-bit real mode
    code = b"\x66\x49\x75\xfc\xf4"
    memory[: len(code)] = code
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(
        machine, _SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0x1000, 4096, address)
    )
    vcpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    special = bytearray(fcntl.ioctl(vcpu, _GET_SREGS, bytes(0x138)))
    # The code segment is the first of the struct: base (8 bytes), limit (4), selector (2).
    special[0:8] = bytes(8)
    special[12:14] = bytes(2)
    fcntl.ioctl(vcpu, _SET_SREGS, bytes(special))

    def timed(count: int) -> float:
        registers = [0] * 18
        registers[2], registers[16], registers[17] = count, 0x1000, 2  # rcx, rip, rflags
        fcntl.ioctl(vcpu, _SET_REGS, struct.pack("=18Q", *registers))
        start = time.perf_counter()
        fcntl.ioctl(vcpu, _RUN, 0)
        elapsed = time.perf_counter() - start
        (reason,) = struct.unpack_from("=I", run, 8)
        if reason != _EXIT_HLT:
            raise RuntimeError(f"the guest stopped with exit reason {reason} instead of halting")
        return elapsed

    os.write(1, _BEGUN)  # from here on the clock runs
    timed(1000)  # a cold start costs more than the countdown
    return _fastest(timed, iterations)


def _count_natively() -> "Callable[[int], float]":
    """The same countdown as a function of this process. Raises OSError where code is not data."""
    import ctypes
    import mmap
    import time

    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code = b"\x89\xf9\xff\xc9\x75\xfc\xc3"  # mov ecx, edi; dec ecx; jnz back to it; ret
    memory[: len(code)] = code
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    count_down = ctypes.CFUNCTYPE(None, ctypes.c_uint)(address)

    def timed(count: int) -> float:
        start = time.perf_counter()
        count_down(count)
        elapsed = time.perf_counter() - start
        assert memory  # it must live as long as its code is called
        return elapsed

    return timed


def _fastest(timed: "Callable[[int], float]", iterations: int) -> float:
    """Instructions per second, of the best of some rounds: the others were disturbed."""
    first = timed(iterations)
    if first > _SLOW_S:
        return 2 * iterations / first
    if first < _TRUSTED_S:
        iterations *= 20
    return max(2 * iterations / timed(iterations) for _ in range(_ROUNDS))


def _main() -> None:
    try:
        iterations = int(sys.argv[1])
        answer: dict[str, object] = {"instructions_per_second": _count_down(iterations)}
        try:
            answer["native"] = _fastest(_count_natively(), iterations)
        except OSError:
            answer["native"] = None
    except (OSError, RuntimeError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
