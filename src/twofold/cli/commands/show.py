"""``twofold show``: everything about one instance."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold show web", "twofold show web --json", "twofold show --exposure web")
DESCRIPTION = """\
With --exposure: in words, what stands between the instance and this host. Each sentence is
verified (seen on its living processes, and as planned), planned (it does not run, or this cannot be
seen from outside), or differs (the two disagree: a warning)."""


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance: name, id or start of the id")
    parser.add_argument(
        "--exposure", action="store_true", help="what stands between it and the host"
    )


def run(args: argparse.Namespace) -> int:
    if args.exposure:
        path = url("instances", args.name, "exposure")
        found = Client(Paths(args.root)).call("GET", path)
        if args.json:
            output.write_json(found)
        else:
            _draw_exposure(found)
        return 0
    client = Client(Paths(args.root))
    instance = client.call("GET", url("instances", args.name))
    snapshots = client.call("GET", url("instances", instance["id"], "snapshots"))
    if args.json:
        output.write_json({**instance, "snapshots": snapshots})
    else:
        _draw(instance)
        words = [
            f"{one['name']}, {output.human_size(one['size_bytes'])}, {one['consistency']}, "
            f"{output.age(one['created_at'])}"
            for one in snapshots
        ]
        output.write_section("snapshots", [("kept", words)])
    return 0


def _draw(instance: dict[str, Any]) -> None:
    spec = instance["spec"]
    ready_s = instance.get("ready_seconds")
    state, error = output.state_words(instance), instance.get("error")
    output.write_line(instance["name"])
    output.write_section(
        "",
        [
            ("id", instance["id"]),
            ("state", state),
            ("error", None if error and error in state else error),
            ("exit code", instance.get("exit_code")),
            ("pid", instance.get("pid")),
            ("created", _moment(instance.get("created_at"))),
            ("started", _moment(instance.get("started_at"))),
            ("ready after", None if ready_s is None else f"{ready_s:.3f} s"),
            ("finished", _moment(instance.get("finished_at"))),
            ("restarts", instance.get("restart_count") or None),
        ],
    )
    output.write_section("", [("warning", each) for each in instance.get("weakened") or []])
    _draw_isolation(instance)
    output.write_section("image", [("name", spec["image"]), ("digest", instance["image_digest"])])
    output.write_section(
        "process",
        [
            ("init", "the image's own" if spec.get("system") else None),
            ("entry point", output.quote(spec.get("entrypoint") or [])),
            ("command", output.quote(spec.get("command") or [])),
            ("workdir", spec.get("workdir")),
            ("user", spec.get("user")),
            ("environment", list(spec.get("env") or [])),
            ("restart", spec.get("restart") if spec.get("restart") != "no" else None),
            ("terminal", "yes" if spec.get("tty") else None),
        ],
    )
    output.write_section(
        "network",
        [
            ("mode", spec.get("network")),
            ("hostname", spec.get("hostname")),
            ("address", instance.get("address")),
            ("mac", instance.get("mac")),
            ("ports", output.port_words(spec.get("ports") or [])),
        ],
    )
    guest = instance.get("guest") or {}
    output.write_section(
        "guest, as its agent says", [(key, value) for key, value in sorted(guest.items())]
    )
    output.write_section(
        "drives",
        [
            ("cd", [disc or "empty" for disc in spec.get("cdrom") or []]),
            ("virtio-win", _in_drive(spec.get("virtio_win"))),
            ("floppy", _in_drive(spec.get("floppy"))),
            ("boot order", ", ".join(spec.get("boot") or []) or None),
        ],
    )
    volumes = [
        f"{one['source']}:{one['target']}{':ro' if one.get('read_only') else ''}"
        for one in spec.get("volumes") or []
    ]
    output.write_section("volumes", [("shared", volumes)])
    memory = spec.get("memory_bytes")
    output.write_section(
        "limits",
        [
            ("cpus", spec.get("cpus")),
            ("memory", output.human_size(memory) if memory else None),
            ("pids", spec.get("pids")),
        ],
    )
    output.write_section("warnings", [("!", list(instance.get("warnings") or []))])


def _draw_isolation(instance: dict[str, Any]) -> None:
    facts = [
        (str(key).replace("_", " "), _fact(value))
        for key, value in (instance.get("isolation_facts") or {}).items()
        if key not in ("isolation", "hardware")
    ]
    isolation = instance["spec"].get("isolation", "container")
    hardware = instance["spec"].get("hardware") if isolation == "vm" else None
    output.write_section("isolation", [("kind", isolation), ("hardware", hardware), *facts])


def _draw_exposure(found: dict[str, Any]) -> None:
    output.write_paragraph(f"{found['name']} ({found['state']}): {found['summary']}.")
    for barrier in found["barriers"]:
        sign = "warning: " if barrier["warning"] else ""
        output.write_line()
        output.write_line(f"{sign}{barrier['topic']} ({barrier['basis']})")
        output.write_paragraph(barrier["words"], indent="    ")


def _in_drive(image: str | None) -> str | None:
    """None: there is no such drive."""
    return image if image else None if image is None else "empty"


def _moment(stamp: str | None) -> str | None:
    return f"{stamp} ({output.age(stamp)})" if stamp else None


def _fact(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list) and len(value) == 2 and all(isinstance(end, int) for end in value):
        return f"{value[0]} to {value[1]}"
    if isinstance(value, list):
        return [str(item) for item in value]
    return value
