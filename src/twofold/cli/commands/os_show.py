"""``twofold os show``: what a guest with an operating system would get, and which rule says so."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold os show openbsd7.0", "twofold os show win11 --json")
DESCRIPTION = """\
Each line of a profile is a choice and the rule that made it. The first profile is the one that is
taken when --hardware is not given."""

_TITLES = {"memory_bytes": "memory", "disk_bytes": "disk size", "nic": "network card"}


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="OS", help="its id, as in twofold os list")


def run(args: argparse.Namespace) -> int:
    system = Client(Paths(args.root)).call("GET", url("os", args.name))
    if args.json:
        output.write_json(system)
    else:
        _draw(system)
    return 0


_WINDOWS_DRIVERS = (
    "a virtio-win disc: create --virtio-win FILE, or set NAME virtio-win=FILE; once they are "
    "installed: set NAME hardware=virtio --try"
)


def _draw(system: dict[str, Any]) -> None:
    output.write_line(system["name"])
    output.write_section(
        "",
        [
            ("id", ", ".join([system["id"], *system["also_called"]])),
            ("vendor", system["vendor"]),
            ("released", system["release_date"] or _status(system["release_status"])),
            ("end of life", system["eol_date"]),
            ("upgrades", system["upgrades"]),
            ("derives from", ", ".join(system["derives_from"][:3])),
            ("known from", ", ".join(system["origins"])),
            ("cloud-init", "yes, in its published disk images" if system["cloud_init"] else None),
        ],
    )
    output.write_section(
        "drivers in the box",
        [
            ("virtio", system["virtio"]),
            *sorted(system["drivers"].items()),
            ("can be added", ", ".join(system["addable"])),
            ("from", _WINDOWS_DRIVERS if system["addable"] else None),
        ],
    )
    output.write_section("firmware", list(system["firmware"].items()))
    source = system["resources_source"]
    output.write_section(
        f"resources ({source})" if source else "resources",
        [(level, _amounts(system[level])) for level in ("minimum", "recommended")],
    )
    taken = system["hardware"]
    for name in sorted(system["profiles"], key=lambda name: name != taken):
        profile = system["profiles"][name]
        why = f" (taken: {system['hardware_reason']})" if name == taken else ""
        output.write_line(f"hardware {name}{why}")
        output.write_section(
            "",
            [
                *(
                    (_TITLES.get(field, field.replace("_", " ")), _choice(field, choice))
                    for field, choice in profile["choices"].items()
                ),
                ("warning", profile["warnings"]),
            ],
        )


def _status(word: str) -> str | None:
    """What stands in for a date: nothing where it is out and nobody says since when."""
    return None if word == "released" else word


def _choice(field: str, choice: dict[str, Any]) -> str:
    value = choice["value"]
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, list):
        value = " ".join(value) or "none"
    elif field.endswith("_bytes"):
        value = output.human_size(value)
    return f"{value:<11} {choice['reason']}"


def _amounts(amounts: dict[str, Any]) -> str:
    vcpus, memory, disk = (amounts[key] for key in ("vcpus", "memory_bytes", "disk_bytes"))
    words = [
        f"{vcpus} CPUs" if vcpus and vcpus > 1 else "1 CPU" if vcpus else "",
        f"{output.human_size(memory)} memory" if memory else "",
        f"{output.human_size(disk)} disk" if disk else "",
    ]
    return ", ".join(word for word in words if word)
