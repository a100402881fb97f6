"""``twofold snapshot show``: everything about one snapshot."""

from __future__ import annotations

from twofold.cli import output, several
from twofold.cli.arguments import Parser
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = (
    "twofold snapshot show web snap-1",
    "twofold snapshot show web snap-1 --json",
    "twofold snapshot show web snap-1 --verify",
)
_KEPT = {
    "stopped": "nothing ran",
    "frozen": "held still while it was copied: a clean file system",
    "crash": "as after a power cut: its file system mends itself at the next start",
    "memory": "with memory: it goes on from that moment",
}


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance: name, id or start of the id")
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="name of the snapshot")
    parser.add_argument(
        "--verify", action="store_true", help="read all of it and compare it with its checksums"
    )


def run(args: argparse.Namespace) -> int:
    path = url("instances", args.name, "snapshots", args.snapshot)
    client = Client(Paths(args.root))
    one = _verified(client, path) if args.verify else client.call("GET", path)
    if args.json:
        output.write_json(one)
        return 0
    still_s = one["standstill_s"]
    output.write_line(one["name"])
    output.write_section(
        "",
        [
            ("instance", one["instance"]),
            ("parent", one["parent"]),
            ("current", "yes: the instance descends from it" if one["current"] else None),
            ("kept", _KEPT[one["consistency"]]),
            ("stood still", None if still_s is None else f"{still_s * 1000:.0f} ms"),
            ("size", output.human_size(one["size_bytes"])),
            ("content", "as it was written (verified now)" if args.verify else None),
            ("created", f"{one['created_at']} ({output.age(one['created_at'])})"),
            ("comment", one["comment"]),
        ],
    )
    return 0


def _verified(client: Client, path: str) -> dict[str, Any]:
    progress = Progress(quiet=False)
    try:
        found: dict[str, Any] = several.operate(client, progress, "POST", f"{path}/verify")
        return found
    finally:
        progress.clear()
