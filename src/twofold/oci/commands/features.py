"""``features``: what this runtime supports, as the specification's features document."""

from __future__ import annotations

import sys

from twofold.errors import InvalidInput
from twofold.guest import jsontext
from twofold.oci import arguments
from twofold.oci import features as contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS: arguments.Table = {}
OPERANDS = ""


def run(_: Values, rest: list[str], session: Session) -> int:
    if rest:
        raise InvalidInput(f"features takes no arguments, and {rest[0]!r} was given")
    sys.stdout.write(jsontext.dumps(contents.document()).decode() + "\n")
    return 0
