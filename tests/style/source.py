"""Reads our own source for the style tests."""

import ast
import sys
from functools import cache
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
PACKAGE = CLONE / "src" / "twofold"
STANDARD_LIBRARY = sys.stdlib_module_names


@cache
def modules() -> dict[str, Path]:
    """Every module of the product: dotted name → file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(name: str) -> set[tuple[str, int]]:
    """What a module imports, lazily or not, as full names with line numbers.

    ``from twofold.model import paths`` counts as ``twofold.model.paths``; what stands under
    ``if TYPE_CHECKING`` does not count, because it is never executed.
    """
    path = modules()[name]
    found: set[tuple[str, int]] = set()
    ignored = _type_checking_nodes(tree(path))
    for node in ast.walk(tree(path)):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, path, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add((full if full in modules() else base, node.lineno))
    return found


def room(name: str) -> str:
    """``twofold.image.sources.file`` → ``image``; the package itself → ''."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def _absolute(name: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    keep = len(parts) - node.level + (1 if path.name == "__init__.py" else 0)
    return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _type_checking_nodes(module: ast.Module) -> set[int]:
    ignored: set[int] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            ignored |= {id(inner) for child in node.body for inner in ast.walk(child)}
    return ignored
