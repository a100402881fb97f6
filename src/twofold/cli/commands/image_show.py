"""``twofold image show``: everything about one image."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold image show debian", "twofold image show debian:trixie --json")


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="IMAGE", help="name or digest")


def run(args: argparse.Namespace) -> int:
    image = Client(Paths(args.root)).call("GET", url("images", args.name))
    if args.json:
        output.write_json(image)
        return 0
    config = image.get("config") or {}
    output.write_line(", ".join(image["names"]) or image["digest"])
    output.write_section(
        "",
        [
            ("digest", image["digest"]),
            ("platform", f"{image.get('os')}/{image.get('architecture')}"),
            ("created", f"{image.get('created_at')} ({output.age(image.get('created_at'))})"),
            ("size", output.human_size(image.get("size_bytes"))),
            ("source", image.get("source")),
            ("layers", list(image.get("layers") or [])),
        ],
    )
    output.write_section(
        "configuration",
        [
            ("entry point", output.quote(config.get("entrypoint") or [])),
            ("command", output.quote(config.get("cmd") or [])),
            ("workdir", config.get("working_dir")),
            ("user", config.get("user")),
            ("stop signal", config.get("stop_signal")),
            ("environment", list(config.get("env") or [])),
            ("ports", list(config.get("exposed_ports") or [])),
            ("labels", [f"{key}={value}" for key, value in (config.get("labels") or {}).items()]),
        ],
    )
    return 0
