"""Names and sizes: what a reader meets first."""

import ast
import subprocess

from source import CLONE, modules, tree

FORBIDDEN_MODULES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
MAX_FILE_LINES = 520
MAX_FUNCTION_LINES = 80
# Unfinished work belongs on the issues. In pieces, so that this file does not find itself.
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "XX" + "X:")
# Places of somebody's own machine that mean nothing to a reader.
PRIVATE_PLACES = (
    "/work" + "/main",
    "/work" + "/shared",
    "/opt/" + "pypi",
    "/opt/" + "wheels",
    "/root/" + ".pyenv",
)


def tracked_text() -> dict[str, str]:
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    found = {}
    for name in names:
        path = CLONE / name
        if path.is_file() and path.stat().st_size < 1 << 20:
            data = path.read_bytes()
            if b"\0" not in data:
                found[name] = data.decode(errors="replace")
    return found


def test_no_module_is_a_drawer() -> None:
    assert not [name for name in modules() if name.split(".")[-1] in FORBIDDEN_MODULES]


def test_files_are_short() -> None:
    long = {
        name: length
        for name, path in modules().items()
        if (length := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert not long


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(CLONE)}:{node.lineno} {node.name} has {length} lines"
        for path in modules().values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_modules_state_their_job() -> None:
    silent = [
        name
        for name, path in modules().items()
        if path.read_text().strip() and not ast.get_docstring(tree(path))
    ]
    assert not silent


def test_nothing_is_marked_unfinished_or_private() -> None:
    found = [
        f"{name}: {word}"
        for name, text in tracked_text().items()
        for word in (*UNFINISHED, *PRIVATE_PLACES)
        if word in text
    ]
    assert not found, "\n".join(found)
