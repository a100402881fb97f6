"""Does /dev/kvm really run guests, and how fast? Found out by running one.

That the device opens says nothing: where the kernel's KVM interprets guests (nested without
hardware support) they hang for minutes. So a one-page guest counts down a register and halts, and
the clock decides. It runs in a child process with a time limit, because KVM_RUN may never return.

This file is also that child (``python kvm_probe.py ITERATIONS``): standard library only. Decides
nothing: the caller picks the accelerator from ``usable``.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

DEVICE = "/dev/kvm"
# QEMU's own translator manages several hundred million; below this KVM would lose to it.
MINIMUM_INSTRUCTIONS_PER_SECOND = 50_000_000
_TIME_LIMIT_S = 5.0
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


def probe(cache_file: str) -> KvmProbe:
    """The answer for this boot of the host: from ``cache_file`` when it was asked before.

    Takes at most five seconds the first time. Never raises; a cache that cannot be read or
    written only means asking again. Blocks: call it in a thread.
    """
    key = _cache_key()
    cached = _read_cache(cache_file, key)
    if cached is not None:
        return cached
    result = probe_now()
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
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        output, _ = child.communicate(timeout=_TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        try:
            child.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            pass  # stuck in the kernel: it dies when the kernel lets it, nobody waits for that
        return KvmProbe(
            usable=False,
            reason=f"a guest of one page did not finish within {_TIME_LIMIT_S:.0f} s",
        )
    try:
        answer = json.loads(output)
    except ValueError:
        return KvmProbe(usable=False, reason=f"the probe ended with status {child.returncode}")
    if "error" in answer:
        return KvmProbe(usable=False, reason=f"{DEVICE} cannot run a guest: {answer['error']}")
    return judge(float(answer["instructions_per_second"]))


def judge(instructions_per_second: float) -> KvmProbe:
    """Turn the measured speed into the answer."""
    millions = instructions_per_second / 1e6
    usable = instructions_per_second >= MINIMUM_INSTRUCTIONS_PER_SECOND
    if usable:
        reason = f"guests run on the processor ({millions:,.0f} million instructions/s)"
    else:
        reason = (
            f"{DEVICE} interprets guests ({millions:.1f} million instructions/s): "
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

    timed(1000)  # a cold start costs more than the countdown
    elapsed = timed(iterations)
    if elapsed < 0.02:  # too quick to trust the clock: count for longer
        iterations *= 100
        elapsed = timed(iterations)
    return 2 * iterations / elapsed


def _main() -> None:
    try:
        answer: dict[str, object] = {"instructions_per_second": _count_down(int(sys.argv[1]))}
    except (OSError, RuntimeError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
