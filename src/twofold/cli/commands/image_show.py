"""``twofold image show``: everything about one image."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = (
    "twofold image show debian",
    "twofold image show debian:trixie --json",
    "twofold image show openbsd --verify",
)


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="IMAGE", help="name or digest")
    parser.add_argument(
        "--verify", action="store_true", help="read a disk again and compare it with its checksum"
    )


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    image = _verified(client, args.name) if args.verify else None
    image = image or client.call("GET", url("images", args.name))
    if args.json:
        output.write_json(image)
        return 0
    disk = image.get("disk")
    config = image.get("config") or {}
    output.write_line(", ".join(image["names"]) or image["digest"])
    output.write_section(
        "",
        [
            ("kind", image.get("kind") or "root"),
            ("digest", image["digest"]),
            ("platform", "" if disk else f"{image.get('os')}/{image.get('architecture')}"),
            ("created", f"{image.get('created_at')} ({output.age(image.get('created_at'))})"),
            ("size", output.human_size(image.get("size_bytes"))),
            ("source", image.get("source")),
            ("layers", list(image.get("layers") or [])),
        ],
    )
    if disk:
        _write_disk(disk, verified=args.verify)
        _write_system(image.get("identified"))
        return 0
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


def _verified(client: Client, name: str) -> dict[str, Any]:
    progress = Progress(quiet=False)
    try:
        image: dict[str, Any] = client.operate(
            "POST",
            url("images", name, "verify"),
            on_event=progress.event,
            on_idle=progress.tick,
        )
        return image
    finally:
        progress.clear()


def _write_disk(disk: dict[str, Any], *, verified: bool) -> None:
    firmware = [word for word in ("bios", "uefi") if disk.get(f"boot_{word}")]
    output.write_section(
        "disk",
        [
            ("format", f"{disk.get('format')} when imported, kept raw"),
            ("size", output.human_size(disk.get("virtual_size_bytes"))),
            ("used", output.human_size(disk.get("used_bytes"))),
            ("checksum", f"{disk.get('checksum')}{' (verified now)' if verified else ''}"),
            ("partitions", disk.get("partition_table")),
            ("boots with", ", ".join(firmware) or "neither BIOS nor UEFI, as it seems"),
            ("processor", _processor(disk)),
            ("volume", disk.get("volume_id")),
            ("system", disk.get("system_id")),
            ("publisher", disk.get("publisher_id")),
            ("application", disk.get("application_id")),
        ],
    )


def _processor(disk: dict[str, Any]) -> str:
    if disk.get("stated_processor"):
        return f"{disk['stated_processor']}: said when it was imported"
    found = ", ".join(disk.get("processors") or [])
    return (
        f"{found}: by the UEFI boot loaders on it" if found else "nothing in its partitions tells"
    )


def _write_system(match: dict[str, Any] | None) -> None:
    """The operating system on the disk and the rule that recognised it."""
    pairs: list[tuple[str, object]]
    if match is None:
        pairs = [("system", "not recognised: twofold os list shows what --os takes")]
    else:
        doubt = "" if match["certain"] else ", a guess"
        kind = "live, boots without an installation" if match["live"] else None
        pairs = [
            ("system", f"{match['name']}{doubt}: twofold os show {match['id']}"),
            ("because", match["rule"]),
            ("processor", match["architecture"]),
            ("medium", kind),
        ]
    output.write_section("operating system", pairs)
