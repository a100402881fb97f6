"""``python -m twofold.daemon --root DIR [--ready-fd N]``: the daemon's process.

Order: lock, directories, socket (bound, so that clients queue), restore, serve. Whoever started it
learns through the descriptor ``N``: a line ``ready``, or the error as JSON. SIGTERM and SIGINT end
it gracefully; instances live on in the keeper, unless the host itself goes down.
"""

import argparse
import asyncio
import errno
import gc
import json
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack

from twofold.api.app import create_app
from twofold.api.services import Services
from twofold.daemon import runplace, wiring
from twofold.daemon.server import Server
from twofold.errors import Forbidden, NoSpace, TwofoldError
from twofold.instance import host_shutdown
from twofold.model.paths import Paths
from twofold.operations.operation import unexpected
from twofold.runtime.vigil import Vigil

log = logging.getLogger("twofold.daemon")


def main(argv: list[str] | None = None) -> int:
    """Run until a signal. Returns the exit code: 0, or 125 when it could not start."""
    options = _parse(argv)
    logging.basicConfig(
        level=options.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        asyncio.run(serve(Paths(options.root), ready_fd=options.ready_fd))
    except Exception as error:
        ours = error if isinstance(error, TwofoldError) else unexpected(error)
        log.error("%s%s", ours.message, f" — {ours.hint}" if ours.hint else "")
        if not isinstance(error, TwofoldError):
            log.error("traceback", exc_info=error)
        _tell_failure(options.ready_fd, ours)
        return ours.exit_code
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="twofold.daemon", description="the Twofold daemon")
    parser.add_argument("--root", help="where it keeps its things (or TWOFOLD_ROOT)")
    parser.add_argument("--ready-fd", type=int, default=-1, help="say 'ready' on this descriptor")
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"]
    )
    return parser.parse_args(argv)


async def serve(paths: Paths, *, ready_fd: int = -1) -> None:
    """Everything between lock and goodbye. Raises TwofoldError when it cannot start."""
    if os.geteuid() != 0:
        raise Forbidden("the daemon needs root", hint="sudo twofold serve")
    # Other rooms make directories that unprivileged ids must pass (the jail); what is secret lies
    # below ROOT, which is 0700, or is made with a mode of its own.
    os.umask(0o022)
    async with AsyncExitStack() as stack:
        try:
            runplace.make_directories(paths)
            lock = runplace.take_lock(paths)
        except OSError as error:
            raise _cannot_begin(paths, error) from error
        stack.callback(os.close, lock)
        sock = runplace.inherited_socket()
        warnings: list[str] = []
        if sock is None:
            sock, warnings = runplace.listen(paths)
        stack.callback(sock.close)
        house = await wiring.build(paths, stack)
        house.warnings += warnings
        app = create_app(
            Services(
                paths=paths,
                instances=house.instances,
                images=house.images,
                operations=house.operations,
                warnings=house.warnings,
                doctor=lambda: wiring.doctor_report(house),
            )
        )
        server = Server(app, on_ready=lambda: _ready(paths, ready_fd))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        stack.callback(_watch_over(paths, server, house).close)
        await server.serve(sockets=[sock])
        if await asyncio.to_thread(runplace.host_goes_down):
            log.info("the host goes down: instances are asked to end")
            await house.scope.close()
            await host_shutdown.end_all(house.instances)
            return
        log.info("the daemon ends; instances run on")


def _watch_over(paths: Paths, server: Server, house: wiring.House) -> Vigil:
    """Make directories and socket anew when somebody has removed them."""
    loop = asyncio.get_running_loop()

    async def renew_network() -> None:
        try:
            await house.instances.rooms.networks.renew()
        except TwofoldError as error:
            log.warning("%s", error.message)

    def renew() -> None:
        runplace.make_directories(paths)
        sock, _ = runplace.listen(paths)
        house.scope.spawn(server.listen_at(sock), name="listen anew")
        house.scope.spawn(renew_network(), name="serve addresses anew")

    return Vigil(
        paths.run,
        (os.path.basename(paths.api_socket),),
        renew,
        watch=loop.add_reader,
        unwatch=loop.remove_reader,
        later=loop.call_later,
    )


def _ready(paths: Paths, ready_fd: int) -> None:
    # What was made while starting lives as long as the daemon: never look at it again.
    gc.collect()
    gc.freeze()
    runplace.tell_ready(ready_fd)
    log.info("serving %s at %s", paths.root, paths.api_socket)


def _tell_failure(ready_fd: int, error: TwofoldError) -> None:
    if ready_fd < 0:
        return
    try:
        os.write(ready_fd, json.dumps({"error": error.to_dict()}).encode() + b"\n")
    except OSError:
        pass  # whoever started us has gone


def _cannot_begin(paths: Paths, error: OSError) -> TwofoldError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space for the daemon in {paths.root!r}", hint=f"df {paths.root}")
    return Forbidden(
        f"cannot use {error.filename or paths.root!r}: {error.strerror}",
        hint="choose another root: twofold --root DIR serve",
    )
