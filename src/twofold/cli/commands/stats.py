"""``twofold stats``: what instances use, again and again."""

from __future__ import annotations

import os
import sys
import time

from twofold.cli import output
from twofold.cli.arguments import Parser, seconds
from twofold.client.transport import Client, percent, url
from twofold.errors import NotFound
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold stats", "twofold stats web db", "twofold stats --no-stream --json")
DESCRIPTION = """\
On a terminal the table is redrawn until Ctrl-C; elsewhere one table follows the other. CPU is of
one processor: 200 % are two. MEMORY is what it holds, without the cache of files; of a virtual
machine it is what the guest says that it uses of its own, and HOST what the machine costs the host
in either case. Rates are per second."""
FIRST_SAMPLE_S = 0.5
HEADER = (
    *("NAME", "CPU", "MEMORY", "LIMIT", "HOST", "PIDS"),
    *("NET IN", "NET OUT", "DISK READ", "DISK WRITE"),
)


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", default=[], help="which; default: all that run")
    add("--no-stream", action="store_true", help="one table, then return")
    add(
        "-i",
        "--interval",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="how often; default: 1",
    )


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    words = "&".join(f"name={percent(name)}" for name in args.names)
    path = f"{url('usage')}?{words}" if words else url("usage")
    live = os.isatty(1) and not args.no_stream and not args.json
    before = _by_id(client.call("GET", path))
    interval_s = max(args.interval, 0.1)
    wait_s = min(FIRST_SAMPLE_S, interval_s)
    while True:
        time.sleep(wait_s)
        wait_s = interval_s
        try:
            now = _by_id(client.call("GET", path))
        except NotFound:
            if args.names and not args.no_stream and before:
                return 0  # it was removed while we looked
            raise
        rows = [_rates(use, before.get(key)) for key, use in now.items()]
        if args.json:
            output.write_json(rows)
        else:
            if live:
                sys.stdout.write("\x1b[H\x1b[J")
            output.write_table(HEADER, [_row(use) for use in rows])
        sys.stdout.flush()
        if args.no_stream:
            return 0
        before = now


def _by_id(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(use["id"]): use for use in samples}


def _rates(use: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The sample with what changed since the one before, per second."""
    fields = {
        "cpu_percent": ("cpu_s", 100.0),
        "network_received_bytes_per_s": ("network_received_bytes", 1.0),
        "network_sent_bytes_per_s": ("network_sent_bytes", 1.0),
        "disk_read_bytes_per_s": ("disk_read_bytes", 1.0),
        "disk_written_bytes_per_s": ("disk_written_bytes", 1.0),
    }
    elapsed_s = use["clock_s"] - before["clock_s"] if before else 0.0
    rates: dict[str, Any] = {}
    for name, (counter, scale) in fields.items():
        now, then = use.get(counter), (before or {}).get(counter)
        if now is None or then is None or elapsed_s <= 0:
            rates[name] = None
        else:
            # A counter that went back began anew: the instance was restarted in between.
            rates[name] = round(max(0.0, now - then) / elapsed_s * scale, 1)
    return {**use, **rates}


def _row(use: dict[str, Any]) -> tuple[str, ...]:
    guest = use.get("guest") or {}
    cpu = use["cpu_percent"]
    limit = guest.get("memory_total_bytes") or use.get("memory_limit_bytes")
    pids = guest.get("processes") if guest else use.get("pids")
    most = use.get("pids_limit")
    memory = guest.get("memory_bytes", use.get("memory_bytes"))
    if use.get("isolation") == "vm" and not guest:
        memory = pids = None
    host = None
    if use.get("memory_bytes") is not None:
        host = use["memory_bytes"] + (use.get("cache_bytes") or 0)
    return (
        use["name"],
        "-" if cpu is None else f"{cpu:.1f} %",
        output.human_size(memory),
        output.human_size(limit),
        output.human_size(host),
        "-" if pids is None else f"{pids}/{most}" if most else str(pids),
        *(
            "-" if use[name] is None else f"{output.human_size(int(use[name]))}/s"
            for name in (
                "network_received_bytes_per_s",
                "network_sent_bytes_per_s",
                "disk_read_bytes_per_s",
                "disk_written_bytes_per_s",
            )
        ),
    )
