"""The Python interpreter that the guest's agent is brought along with.

Finds the host's interpreter, the libraries it is linked with, and the part of the standard library
that the agent imports, by asking that very interpreter. Copies and starts nothing else.
"""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

from twofold.errors import Unsupported

_SITE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Runs in the chosen interpreter with -I -S: what does the agent pull in, compiled by its own
# compiler? Docstrings are dropped (optimize=2): a quarter less to read in every guest.
_SURVEY = r"""
import sys
site, imports = sys.argv[1], sys.argv[2].split(",")
sys.path.insert(0, site)
for name in [*imports, "encodings.ascii", "encodings.latin_1", "encodings.utf_8"]:
    __import__(name)
import os  # frozen, but os.pyc on disk is how the interpreter recognises its library
rows = []
for name, module in sorted(sys.modules.items()):
    path, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    frozen = spec is not None and spec.origin == "frozen" and name != "os"
    if path and not frozen and spec is not None and name == spec.name:
        rows.append((name, path, hasattr(module, "__path__")))
print(repr((sys.version_info[:3], rows)))
"""

_COMPILE = r"""
import importlib._bootstrap_external as ext, importlib.util, json, sys
for source, name, target in json.load(sys.stdin):
    with open(source, "rb") as stream:
        data = stream.read()
    code = compile(data, name, "exec", dont_inherit=True, optimize=2)
    with open(target, "wb") as stream:
        stream.write(ext._code_to_hash_pyc(code, importlib.util.source_hash(data), False))
"""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """``modules``: name → source path; ``extensions``: name → shared object; ``libraries``:
    soname → path of everything the binary and the extensions are linked with. ``emulator``: the
    words before the binary, for one of another processor than this host's."""

    binary: str
    version: str
    loader: str
    libraries: dict[str, str]
    modules: dict[str, str]
    packages: frozenset[str]
    extensions: dict[str, str]
    emulator: tuple[str, ...] = ()


def find() -> str:
    """The real binary: the system's own where it is new enough, else the one running now."""
    for candidate in ("/usr/bin/python3", "/usr/bin/python3.11", sys.executable):
        real = os.path.realpath(candidate)
        if os.access(real, os.X_OK) and _minor_version(real) >= (3, 11):
            return real
    raise Unsupported(
        f"no Python 3.11 or newer to bring into guests (looked at {sys.executable!r} too)",
        hint="apt-get install python3",
    )


def survey(
    binary: str,
    imports: tuple[str, ...],
    *,
    emulator: tuple[str, ...] = (),
    lister: tuple[str, ...] = ("ldd",),
    root: str = "",
) -> Interpreter:
    """What importing these modules in that interpreter needs on disk. A binary that only
    ``emulator`` runs has its libraries below ``root``; ``lister`` says which they are."""
    argv = [*emulator, binary, "-I", "-S", "-c", _SURVEY, _SITE, ",".join(imports)]
    version, rows = ast.literal_eval(_run(argv, "looking at what the agent imports"))
    modules = {name: path for name, path, _ in rows if path.endswith(".py")}
    extensions = {name: path for name, path, _ in rows if not path.endswith(".py")}
    packages = {name for name, _, package in rows if package}
    libraries, loader = linked(binary, *extensions.values(), lister=lister, root=root)
    loader = os.path.realpath(loader)
    return Interpreter(
        binary=binary,
        version=".".join(str(part) for part in version),
        loader=loader,
        libraries=libraries,
        modules=modules,
        packages=frozenset(packages),
        extensions=extensions,
        emulator=emulator,
    )


def compile_modules(interpreter: Interpreter, folder: str) -> dict[str, bytes]:
    """Each module as an unchecked-hash .pyc made by that interpreter; ``folder`` is scratch."""
    jobs = []
    for number, (name, path) in enumerate(sorted(interpreter.modules.items())):
        shown = name.replace(".", "/") + ("/__init__.py" if name in interpreter.packages else ".py")
        jobs.append((path, shown, f"{folder}/{number}.pyc"))
    argv = [*interpreter.emulator, interpreter.binary, "-I", "-S", "-c", _COMPILE]
    _run(argv, "compiling the agent", stdin=json.dumps(jobs))
    result = {}
    for (_, _, target), name in zip(jobs, sorted(interpreter.modules), strict=True):
        with open(target, "rb") as stream:
            result[name] = stream.read()
        os.unlink(target)
    return result


def linked(
    *objects: str, lister: tuple[str, ...] = ("ldd",), root: str = ""
) -> tuple[dict[str, str], str]:
    """(soname → real path, loader) of everything the objects are linked with."""
    paths, loader = resolve_libraries(*objects, lister=lister)
    found = {os.path.basename(path): os.path.realpath(root + path) for path in paths}
    return found, loader


def resolve_libraries(*objects: str, lister: tuple[str, ...] = ("ldd",)) -> tuple[list[str], str]:
    """(paths, loader's path) of everything the objects are linked with, as ldd resolves it."""
    paths: dict[str, None] = {}
    loader = ""
    for name in objects:
        for line in _run([*lister, name], "looking at libraries").splitlines():
            if "=> not found" in line:
                raise Unsupported(f"{name!r} needs {line.strip()!r}", hint=f"reinstall {name}")
            match = re.match(r"\s*(\S+) => (/\S+) \(0x", line)
            if match and not match.group(1).startswith("/"):
                paths[match.group(2)] = None
                continue
            match = re.match(r"\s*(?:/\S+ => )?(/\S+) \(0x", line)
            if match:
                loader = match.group(1)
    return list(paths), loader


def _minor_version(binary: str) -> tuple[int, int]:
    try:
        text = _run([binary, "-ISc", "import sys; print(*sys.version_info[:2])"], "version")
    except Unsupported:
        return (0, 0)
    major, minor = text.split()
    return int(major), int(minor)


def _run(argv: list[str], purpose: str, *, stdin: str = "") -> str:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=60, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"{purpose}: {argv[0]!r} could not run: {error}") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Unsupported(f"{purpose}: {argv[0]!r} failed: {last[0]}")
    return done.stdout
