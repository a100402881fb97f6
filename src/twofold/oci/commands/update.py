"""``update``: change the limits of a container that exists."""

from __future__ import annotations

import sys

from twofold.errors import InvalidInput
from twofold.oci import arguments, document, lookup
from twofold.oci import resources as resource_parser
from twofold.oci.arguments import FLAG, VALUE, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

# Option → where it stands in linux.resources.
_INTEGERS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-share": ("cpu", "shares"),
    "cpu-idle": ("cpu", "idle"),
    "pids-limit": ("pids", "limit"),
}
_SIZES = {
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
}
_WORDS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
OPTIONS = {
    "resources": Option(VALUE, "file with linux.resources as JSON; - is stdin", short="r"),
    **{name: Option(VALUE, "a number", meta="N") for name in _INTEGERS},
    **{name: Option(VALUE, "bytes, or with k, m, g; -1: no limit", meta="SIZE") for name in _SIZES},
    **{name: Option(VALUE, "a list as in 0-2,4", meta="LIST") for name in _WORDS},
    "l3-cache-schema": Option(VALUE, "refused: Intel RDT is not supported"),
    "mem-bw-schema": Option(VALUE, "refused: Intel RDT is not supported"),
    "check-before-update": Option(FLAG, "refuse a memory limit below what is in use"),
}
OPERANDS = "ID"
_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}


def run(values: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci update")
    for name in ("l3-cache-schema", "mem-bw-schema"):
        if values.given(name):
            raise InvalidInput(
                f"--{name}: Intel RDT is not supported by this runtime", hint="leave it out"
            )
    resources = resource_parser.parse(_node(values), devices=False)
    with lookup.find(session.root, container_id, lock=True) as found:
        found.require("created", "running", "paused", verb="update")
        for warning in found.group().update(resources):
            session.warn(warning)
    return 0


def _node(values: Values) -> document.Node:
    path = values.text("resources")
    data: dict[str, Any] = {}
    if path:
        node = document.parse(_read(path), "--resources")
        data = dict(node.value)
        # Engines send the whole object, in which null means "as it is".
        data = {key: value for key, value in data.items() if value is not None}
    for name, place in _INTEGERS.items():
        if values.given(name):
            _put(data, place, values.number(name, -1, 2**63 - 1))
    for name, place in _SIZES.items():
        if values.given(name):
            _put(data, place, _size(name, values.text(name)))
    for name, place in _WORDS.items():
        if values.given(name):
            _put(data, place, values.text(name))
    if values.flag("check-before-update"):
        _put(data, ("memory", "checkBeforeUpdate"), True)
    return document.Node(data, "resources")


def _put(data: dict[str, Any], place: tuple[str, str], value: object) -> None:
    outer = data.setdefault(place[0], {})
    if isinstance(outer, dict):
        outer[place[1]] = value


def _read(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read(document.LIMIT_BYTES + 1)
        with open(path, "rb") as file:
            return file.read(document.LIMIT_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"--resources {path!r}: {error.strerror}") from error


def _size(name: str, text: str) -> int:
    """``512m``, ``1.5g`` is refused, ``-1`` is no limit."""
    if text == "-1":
        return -1
    digits = text.lower().removesuffix("b")
    shift = _UNITS.get(digits[-1:], 0)
    number = digits[:-1] if shift else digits
    if not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise InvalidInput(f"--{name} is {text!r}: not a size", hint="write for example 512m")
    return int(number) << shift
