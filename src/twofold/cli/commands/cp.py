"""``twofold cp``: files between the host and an instance, with the rules of docker cp."""

from __future__ import annotations

import os
import sys

from twofold.cli.arguments import Parser, UsageError
from twofold.client.transport import Client, url
from twofold.errors import InvalidInput, NotFound, Unavailable
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

EXAMPLES = (
    "twofold cp web:/etc/apache2/apache2.conf .",
    "twofold cp ./site/. web:/var/www/html",
    "twofold cp -a web:/srv backup",
    "twofold cp web:/var/log - | tar -t",
)
DESCRIPTION = """\
Into a directory that is there: under the same name. Otherwise the last part of DST is the new
name. SRC ending in /. means what is in the directory. - is a tar stream on stdin or stdout.
Copies belong to you on the host, to root inside; -a keeps the numbers of owners. Setuid bits,
devices and FIFOs never reach the host; leaving something out makes the exit code 1."""
READ_BYTES = 256 << 10


def configure(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="NAME:PATH, a path of the host, or -")
    parser.add_argument("target", metavar="DST", help="NAME:PATH, a path of the host, or -")
    parser.add_argument("-a", "--archive", action="store_true", help="keep owners (numbers)")


def run(args: argparse.Namespace) -> int:
    source, target = _place(args.source), _place(args.target)
    if (source is None) == (target is None):
        raise UsageError(
            "exactly one of SRC and DST must be NAME:PATH",
            hint="twofold cp web:/etc/hosts . (a host file with a colon: ./a:b)",
        )
    client = Client(Paths(args.root))
    if source:
        return 1 if _copy_out(client, *source, args.target, keep_ids=args.archive) else 0
    if target:
        _copy_in(client, args.source, *target, keep_ids=args.archive)
    return 0


def _place(text: str) -> tuple[str, str] | None:
    """``NAME:PATH`` as a pair; None for a path of the host. Relative paths inside start at /."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name.startswith((".", "~")):
        return None
    if not path:
        raise UsageError(f"{text!r} has no path after the colon", hint=f"{name}:/")
    return name, path if path.startswith("/") else f"/{path}"


def _archive(name: str, path: str) -> str:
    return url("instances", name, "archive", path=path)


def _copy_out(client: Client, name: str, path: str, target: str, *, keep_ids: bool) -> int:
    """Returns how many entries were left out."""
    reply = client.request("GET", _archive(name, path), accept="application/x-tar")
    pieces = _whole(client.paths, name, path, reply.chunks())
    if target == "-":
        if os.isatty(1):
            raise UsageError("a tar stream is not for a terminal", hint="redirect it to a file")
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return 0
    from twofold.cli import hosttar

    stream = hosttar.PieceReader(pieces)
    inside_only = path.endswith("/.")
    if os.path.isdir(target):
        # What the sender calls it does not count: it may be anything.
        rename = "." if inside_only else os.path.basename(os.path.normpath(path)) or "."
        return hosttar.unpack(stream, target, rename=rename, keep_ids=keep_ids)
    if os.path.exists(target) and (os.path.islink(target) or not os.path.isfile(target)):
        # A pipe, a terminal, /dev/null, a link such as /dev/stdout: written to, never replaced.
        descriptor = os.open(target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            hosttar.copy_first_file(stream, descriptor)
        finally:
            os.close(descriptor)
        return 0
    folder, base = os.path.split(target.rstrip("/"))
    if not os.path.isdir(folder or "."):
        raise NotFound(f"directory {folder!r} does not exist", hint=f"mkdir -p {folder}")
    first = hosttar.Peeked(stream)
    if not first.is_directory and target.endswith("/"):
        raise NotFound(f"directory {target!r} does not exist", hint=f"mkdir -p {target}")
    if first.is_directory and os.path.lexists(target):
        raise InvalidInput(
            f"{path!r} is a directory and {target!r} is a file", hint="name a directory"
        )
    return hosttar.unpack(first, folder or ".", rename=base, keep_ids=keep_ids)


def _whole(paths: Paths, name: str, path: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces; a stream that breaks off says what happened to the instance."""
    try:
        yield from pieces
    except Unavailable:
        from twofold.client.broken import broken_off

        probe, is_there = Client(paths, launch=False), True
        try:
            probe.call("GET", url("instances", name))
        except NotFound:
            is_there = False
        finally:
            probe.close()
        raise broken_off(paths, name, path, is_there=is_there) from None


def _copy_in(client: Client, source: str, name: str, path: str, *, keep_ids: bool) -> None:
    if source == "-":
        if os.isatty(0):
            raise UsageError("a tar stream is not typed", hint="tar -c DIR | twofold cp - web:/srv")
        _upload(client, name, path, _stdin())
        return
    from twofold.cli import hosttar

    try:
        is_directory = os.path.isdir(source) and (
            not os.path.islink(source) or source.endswith(("/", "/."))
        )
        os.lstat(source)
    except OSError as error:
        raise NotFound(
            f"source {source!r}: {error.strerror}", hint=f"ls -l {os.path.dirname(source) or '.'}"
        ) from None
    kind = _kind_inside(client, name, path)
    base = os.path.basename(os.path.realpath(source) if is_directory else source)
    if kind == "directory":
        top = "" if source.endswith("/.") or source in (".", "..") else base
        _upload(client, name, path, hosttar.pack(source, top, keep_ids=keep_ids))
        return
    if is_directory and kind == "file":
        raise InvalidInput(
            f"{source!r} is a directory and {path!r} is a file in {name!r}",
            hint="name a directory",
        )
    if not is_directory and path.endswith("/"):
        raise NotFound(
            f"directory {path!r} is not there in {name!r}",
            hint=f"twofold exec {name} mkdir -p {path}",
        )
    folder, last = os.path.split(path.rstrip("/"))
    _upload(client, name, folder or "/", hosttar.pack(source, last, keep_ids=keep_ids))


def _kind_inside(client: Client, name: str, path: str) -> str:
    """``directory``, ``file`` or ``absent``: what the path is inside, links followed."""
    from twofold.cli import hosttar

    probe = Client(client.paths)  # its connection is cut in the middle of a large directory
    try:
        reply = probe.request("GET", _archive(name, path.rstrip("/") + "/."))
        pieces = hosttar.PieceReader(reply.chunks())
        return "directory" if hosttar.Peeked(pieces).is_directory else "file"
    except NotFound:
        client.call("GET", url("instances", name))  # it is the path, not the instance
        return "absent"
    except InvalidInput:
        return "file"
    finally:
        probe.close()


def _upload(client: Client, name: str, path: str, pieces: Iterator[bytes]) -> None:
    client.request("PUT", _archive(name, path), upload=pieces).body()


def _stdin() -> Iterator[bytes]:
    while piece := os.read(0, READ_BYTES):
        yield piece
