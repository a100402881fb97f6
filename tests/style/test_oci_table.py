"""Every property of the OCI specification has its tests, and the page about them is current."""

import sys
from pathlib import Path

SYSTEM = Path(__file__).resolve().parents[1] / "system"
sys.path.insert(0, str(SYSTEM))

import oci_table  # noqa: E402


def test_every_property_is_proved_or_refused() -> None:
    gaps = [
        f"{name}: proofs {row.proofs}, counter-tests {row.counter_tests}"
        for name, row in sorted(oci_table.rows().items())
        if not row.supported and not row.refused
    ]
    assert not gaps, "\n".join(gaps)


def test_no_property_is_both_supported_and_refused() -> None:
    assert not [name for name, row in oci_table.rows().items() if row.supported and row.refused]


def test_the_page_is_current() -> None:
    assert oci_table.PAGE.read_text() == oci_table.page(), (
        "write it anew: .venv/bin/python tests/system/oci_table.py --write"
    )
