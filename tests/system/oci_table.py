"""Writes ``docs/reference/oci-conformance.md`` from the decorators of the tests.

    .venv/bin/python tests/system/oci_table.py          # print
    .venv/bin/python tests/system/oci_table.py --write  # replace the page

Refuses nothing; gaps are found by ``tests/style/test_oci_table.py``.
"""

import argparse
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs/reference/oci-conformance.md"
_SPEC_SITE = "https://github.com/opencontainers/runtime-spec/blob/v1.2.1"
_HEAD = """# Conformance of `twofold-oci` to the OCI runtime specification

Written by `tests/system/oci_table.py` from the tests themselves; do not edit. One row per property
of the specification, version 1.2.

* *Proof*: the test that sees the effect from inside a container.
* *Counter-test*: the test that sees it absent without the property, or a wrong value refused.
* *refused*: Twofold does not do this and says so, with field, value and reason. Nothing that the
  specification names is ignored.

`mounts: propagation` is `test_propagation` in `tests/system/test_oci_mounts.py`. The tests take any
runtime: `TWOFOLD_OCI_RUNTIME=runc .venv/bin/pytest tests/system -k oci` runs them against Debian's
runc 1.1.5, which passes all that are not marked as beyond it.

On a host with pure control groups v2 and systemd (a Debian 12 machine of our own, Linux 6.1) they
run from `test_v2_host.py --slow`, a file at a time. Passed there so far: process 78 of 78,
hostile 93 of 93, seccomp 48 of 48, mounts 97 of 98 (the last wanted idmaps of a tmpfs, Linux 6.3,
and has been changed since), the labels of AppArmor. SELinux has a machine of its own
(`test_selinux_host.py`): 16 of 16. Devices, features, hooks, lifecycle and namespaces have yet to
be run there.
"""


@dataclass(kw_only=True)
class Row:
    proofs: list[str] = field(default_factory=list)
    counter_tests: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    only_where: str = ""

    @property
    def supported(self) -> bool:
        return bool(self.proofs and self.counter_tests)

    @property
    def refused(self) -> bool:
        return bool(self.refusals)


def rows() -> dict[str, Row]:
    """Every property, with the tests that name it, in the order of the files."""
    sys.path.insert(0, str(HERE))
    import oci_spec

    found = {name: Row() for name in oci_spec.PROPERTIES}
    for path in sorted(HERE.glob("test_oci_*.py")):
        for name, test in vars(_load(path)).items():
            for role, about in getattr(test, "oci_notes", ()):
                if role == "only_where":
                    reason, about = about
                    found[about].only_where = reason
                    continue
                row = found[about]
                place = {
                    "proves": row.proofs,
                    "refutes": row.counter_tests,
                    "refuses": row.refusals,
                }[role]
                if (where := f"{path.name}::{name}") not in place:
                    place.append(where)
    return found


def _load(path: Path) -> object:
    # Under a name of its own: unit tests may have the same file name.
    spec = importlib.util.spec_from_file_location(f"oci_table_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page() -> str:
    import_rows = rows()
    import oci_spec

    supported = sum(row.supported for row in import_rows.values())
    refused = sum(row.refused and not row.supported for row in import_rows.values())
    lines = [_HEAD, f"{len(import_rows)} properties: {supported} supported, {refused} refused."]
    for document, names in oci_spec.SPEC.items():
        lines += ["", f"## [{document}]({_SPEC_SITE}/{document})", ""]
        lines += ["| property | | proof | counter-test |", "|---|---|---|---|"]
        for name in names:
            lines.append(_line(name, import_rows[name]))
    lines += ["", "## Command line of runc, which engines use", ""]
    lines += ["| option | | proof | counter-test |", "|---|---|---|---|"]
    lines += [_line(name, import_rows[name]) for name in oci_spec.COMMAND_LINE]
    return "\n".join(lines) + "\n"


def _line(name: str, row: Row) -> str:
    shown = f"`{name}`" if not name.endswith(")") else name
    word, proofs = ("yes", row.proofs) if row.supported else ("refused", row.refusals)
    if row.only_where:
        word += f" ({row.only_where})"
    return f"| {shown} | {word} | {_tests(proofs)} | {_tests(row.counter_tests)} |"


def _tests(names: list[str]) -> str:
    """The first two; more would make the table unreadable."""
    words = []
    for name in names[:2]:
        file, _, test = name.partition("::")
        topic = file.removeprefix("test_oci_").removesuffix(".py")
        words.append(f"`{topic}: {test.removeprefix('test_')}`")
    return ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the page")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
