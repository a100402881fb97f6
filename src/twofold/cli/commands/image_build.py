"""``twofold image build``: an image from the distribution's own signed archive."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold image build debian",
    "twofold image build debian:trixie",
    "twofold image build web --include apache2,curl",
    "twofold image build old --suite bullseye --force",
    "twofold image build debian --arch arm64",
)
DESCRIPTION = "Signatures are checked with the host's keyring. Prints the name and the digest."


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="IMAGE", help="debian, debian:SUITE, or a name of your own")
    add("--suite", help="release to build; default: the one in the name, else the host's")
    add(
        "--include",
        action="append",
        default=[],
        metavar="PKG,…",
        help="packages to add, separated by commas; repeatable",
    )
    add("--arch", help="processor to build for; arm64 on an amd64 host makes arm64/IMAGE")
    add("--variant", help="mmdebstrap's variant; default: chosen by the daemon")
    add("--force", action="store_true", help="build again although the image is there")
    add("-q", "--quiet", action="store_true", help="draw no progress")


def run(args: argparse.Namespace) -> int:
    packages = [name for text in args.include for name in text.replace(",", " ").split()]
    said = {
        "name": args.name,
        "suite": args.suite,
        "include": packages,
        "variant": args.variant,
        "arch": args.arch,
        "force": args.force,
    }
    body = {key: value for key, value in said.items() if value}
    progress = Progress(quiet=args.quiet)
    try:
        image = Client(Paths(args.root)).operate(
            "POST",
            url("images", "build"),
            body=body,
            on_event=progress.event,
            on_idle=progress.tick,
        )
    finally:
        progress.clear()
    if args.json:
        output.write_json(image)
    else:
        output.write_line(f"{', '.join(image['names'])} {image['digest']}")
    return 0
