"""The documentation's links lead somewhere, and it names every verb and every decision."""

import ast
import re
from pathlib import Path

from source import CLONE, PACKAGE, tree

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    return [*CLONE.glob("*.md"), *(CLONE / "docs").rglob("*.md")]


def anchors(path: Path) -> set[str]:
    """Headings as anchors, the way code hosts make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE):
        plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def test_relative_links_resolve() -> None:
    broken = []
    for document in documents():
        for target in LINK.findall(FENCE.sub("", document.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (document.parent / name).resolve() if name else document
            if not path.exists() or (anchor and anchor not in anchors(path)):
                broken.append(f"{document.relative_to(CLONE)}: {target}")
    assert not broken, "\n".join(broken)


def verbs() -> set[str]:
    """The keys of the CLI's static table of verbs, read without importing it."""
    for node in ast.walk(tree(PACKAGE / "cli" / "main.py")):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        value = getattr(node, "value", None)
        if "VERBS" in names and isinstance(value, ast.Dict):
            return {str(ast.literal_eval(key)) for key in value.keys if key is not None}
    raise AssertionError("src/twofold/cli/main.py has no table VERBS")


def test_every_verb_is_in_the_reference() -> None:
    text = "\n".join(path.read_text() for path in (CLONE / "docs" / "reference").glob("*.md"))
    headings = set(re.findall(r"^#+ `?twofold ([a-z -]+?)`?$", text, re.MULTILINE))
    missing = {verb for verb in verbs() if verb not in headings and f"`{verb}`" not in text}
    assert not missing


def test_the_index_of_decisions_is_complete() -> None:
    directory = CLONE / "docs" / "decisions"
    index = (directory / "README.md").read_text()
    missing = [
        path.name
        for path in directory.glob("*.md")
        if path.name != "README.md" and f"({path.name})" not in index
    ]
    assert not missing
