"""What this runtime can do, said to the letter: ``--version`` and ``features``."""

from __future__ import annotations

from twofold import __version__
from twofold.oci.state import SPEC_VERSION


def version_text() -> str:
    return f"twofold-oci version {__version__}\nspec: {SPEC_VERSION}\n"
