"""The initrd of the kernel bundle: plan (pure) and bytes. Its layout is drawn in
docs/contributing/guest-boot.md; the agent in it takes over as PID 1.

Not compressed: under TCG unpacking costs more than loading (docs/decisions/kernel-bundle.md).
"""

import os
from collections.abc import Mapping

from twofold.hypervisor import cpio, modules, targets
from twofold.hypervisor.interpreter import Interpreter
from twofold.hypervisor.targets import Target

HOME = "lib/twofold"

# The kernel passes one argument after the interpreter's path.
LAUNCHER = f"""#!/{HOME}/bin/python3 -IS
import sys
sys.path.insert(0, "/{HOME}/site")
from twofold.guest.agent import main
main()
"""


def entries(
    hardware: str,
    *,
    release: str,
    interpreter: Interpreter,
    compiled: Mapping[str, bytes],
    files: Mapping[str, bytes],
    kernel_modules: Mapping[str, bytes],
    nested: bool = False,
    launcher: str = LAUNCHER,
    target: Target = targets.AMD64,
) -> list[cpio.Entry]:
    """The archive's entries for one hardware profile; with KVM's modules when ``nested``.

    ``compiled``: module name → .pyc; ``files``: host path → bytes of binary, loader, libraries and
    extensions; ``kernel_modules``: name → bytes.
    """
    return [
        *_frame(release, launcher),
        *_interpreter(interpreter, files, target),
        *_python_modules(interpreter, compiled),
        *_kernel_modules(hardware, kernel_modules, nested=nested),
    ]


def write(path: str, archive: bytes) -> None:
    """Put the finished archive at ``path`` (a new file)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as stream:
        stream.write(archive)


def _frame(release: str, launcher: str) -> list[cpio.Entry]:
    return [
        cpio.regular("init", launcher.encode(), 0o755),
        cpio.regular(f"{HOME}/kernel-release", f"{release}\n".encode()),
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3),
        # Python insists on random numbers at once; where no RDRAND has seeded the kernel's pool by
        # then, getrandom() puts it off and the device is its other way.
        cpio.character_device("dev/urandom", 1, 9),
        *(cpio.directory(name) for name in ("proc", "sys", "run", "sysroot", "tmp")),
    ]


def _interpreter(
    interpreter: Interpreter, files: Mapping[str, bytes], target: Target
) -> list[cpio.Entry]:
    result = [
        cpio.regular(f"{HOME}/bin/python3", files[interpreter.binary], 0o755),
        cpio.regular(f"{HOME}/ld.so", files[interpreter.loader], 0o755),
        # Where the binary's PT_INTERP points, and where that loader looks by itself.
        cpio.symlink(target.loader, f"/{HOME}/ld.so"),
        cpio.symlink(target.libraries, "twofold/lib"),
    ]
    for soname, path in sorted(interpreter.libraries.items()):
        result.append(cpio.regular(f"{HOME}/lib/{os.path.basename(soname)}", files[path], 0o755))
    dynload = f"{_stdlib(interpreter)}/lib-dynload"
    result.append(cpio.directory(dynload))
    for path in sorted(set(interpreter.extensions.values())):
        result.append(cpio.regular(f"{dynload}/{os.path.basename(path)}", files[path], 0o755))
    return result


def _python_modules(interpreter: Interpreter, compiled: Mapping[str, bytes]) -> list[cpio.Entry]:
    result = []
    for name, code in sorted(compiled.items()):
        ours = name == "twofold" or name.startswith("twofold.")
        base = f"{HOME}/site" if ours else _stdlib(interpreter)
        path = name.replace(".", "/") + ("/__init__" if name in interpreter.packages else "")
        result.append(cpio.regular(f"{base}/{path}.pyc", code))
    return result


def _kernel_modules(
    hardware: str, available: Mapping[str, bytes], *, nested: bool
) -> list[cpio.Entry]:
    requires = {name: modules.requirements(data) for name, data in available.items()}
    lists = {
        "modules": modules.ROOT[hardware],
        "modules.net": modules.NET[hardware],
        "modules.share": modules.SHARE[hardware],
        "modules.late": modules.LATE,
    }
    if nested:  # 4 MB, which every other guest would have to hold as well
        lists["modules.nested"] = modules.NESTED
    result, packed = [], set()
    for file_name, wanted in lists.items():
        order = modules.load_order(wanted, requires)
        text = "".join(f"/{HOME}/ko/{name}.ko\n" for name in order)
        result.append(cpio.regular(f"{HOME}/{file_name}", text.encode()))
        packed.update(order)
    for name in sorted(packed):
        result.append(cpio.regular(f"{HOME}/ko/{name}.ko", modules.unsigned(available[name])))
    return result


def _stdlib(interpreter: Interpreter) -> str:
    major, minor, _ = interpreter.version.split(".")
    return f"{HOME}/lib/python{major}.{minor}"
