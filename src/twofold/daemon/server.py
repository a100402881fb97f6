"""uvicorn without its clock: an idle daemon sleeps in epoll and is woken by work alone.

uvicorn's own loop wakes ten times a second to look at flags and to renew a Date header that nobody
needs on a local socket. Here the end is an event, and signals belong to the daemon.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from twofold.api.limits import HEADER_LIMIT_BYTES

KEEP_ALIVE_S = 30
HEADER_TIMEOUT_S = 15.0
MAX_CONNECTIONS = 2048
GRACE_S = 3


class PatientProtocol(H11Protocol):
    """Closes a connection whose first request does not arrive in time (slowloris)."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._first_request = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._first_request.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    def __init__(self, app: Any, *, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                date_header=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                limit_concurrency=MAX_CONNECTIONS,
                h11_max_incomplete_event_size=HEADER_LIMIT_BYTES,
            )
        )
        self._on_ready = on_ready
        self._end = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._end.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self.on_tick(0)  # sets the default headers, once
        self._on_ready()

    async def listen_at(self, sock: socket.socket) -> None:
        """There as well, beside what is listened at already."""

        def protocol() -> PatientProtocol:
            return PatientProtocol(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )

        loop = asyncio.get_running_loop()
        self.servers.append(await loop.create_server(protocol, sock=sock))

    async def main_loop(self) -> None:
        await self._end.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
