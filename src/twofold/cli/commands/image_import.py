"""``twofold image import``: an image from a file on the daemon's host."""

from __future__ import annotations

import os

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.errors import NotFound
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold image import alpine-minirootfs.tar.gz alpine",
    "twofold image import busybox-oci.tar",
    "twofold image import ./oci-layout-directory tool:1.0",
    "twofold image import openbsd.img",
    "twofold image import appliance.qcow2 appliance",
    "twofold image import disk.bin --format raw",
    "twofold image import board.img --arch arm64",
)
DESCRIPTION = """\
Takes an OCI layout (directory or tar), a docker-archive (docker save) or a plain root file system
tar, compressed or not; every digest is checked. Or a disk or install medium (qcow2, raw, vmdk,
vdi, vhdx, iso, floppy) for a machine that boots an operating system of its own: a disk that leans
on another file, is encrypted or makes no sense is refused. Prints the name and the digest."""

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "iso", "floppy")


def configure(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="archive, disk, or directory of an OCI layout")
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="default: the name inside, else the file's"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="of a disk; default: what its content says"
    )
    parser.add_argument(
        "--arch", help="processor of a disk or medium; default: what its UEFI boot loader is for"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="draw no progress")


def run(args: argparse.Namespace) -> int:
    path = os.path.abspath(args.file)
    if not os.path.lexists(path):
        raise NotFound(f"file {path!r} does not exist", hint=f"ls {os.path.dirname(path)}")
    progress = Progress(quiet=args.quiet)
    try:
        image = Client(Paths(args.root)).operate(
            "POST",
            url("images", "import"),
            body={"path": path, "name": args.name, "format": args.format, "arch": args.arch},
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
