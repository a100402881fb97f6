"""The daemon's line to the keeper: connects when first needed, and again after a keeper's end.

Events go to ``on_event``, in order. When the line breaks ``on_lost`` is told; the next keeper,
which goes on with everything, says what happened meanwhile. Holds no opinion on instances.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from twofold.errors import TwofoldError, Unavailable
from twofold.model.paths import Paths
from twofold.operations import TaskScope
from twofold.runtime.client import KeeperClient

log = logging.getLogger("twofold.keeper")

# Asked of the next keeper when the one that was asked has died: they may be done twice.
_REPEATABLE = frozenset(
    ("hello", "kill", "freeze", "thaw", "update", "usage", "processes", "plan", "release")
)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0


class KeeperLink:
    def __init__(
        self,
        paths: Paths,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], Awaitable[None]],
    ) -> None:
        self._paths = paths
        # Of its own: while the daemon ends, what is being undone still waits for events.
        self._scope = TaskScope()
        self._on_event = on_event
        self._on_lost = on_lost
        self._client: KeeperClient | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self.warnings: list[str] = []

    async def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        client = await self._connected()
        try:
            return await client.call(op, fds, **fields)
        except Unavailable:
            if not client.closed or not _is_repeatable(op, fields):
                raise
        client = await self._connected()
        return await client.call(op, fds, **fields)

    async def _connected(self) -> KeeperClient:
        if self._client is not None and not self._client.closed:
            return self._client
        return await self._connect()

    async def _connect(self) -> KeeperClient:
        async with self._connecting:
            if self._client is not None and not self._client.closed:
                return self._client
            self._client = client = await KeeperClient.connect(self._paths)
            self.warnings += [one for one in client.warnings if one not in self.warnings]
            self._scope.spawn(self._listen(client), name="keeper events")
            return client

    async def _listen(self, client: KeeperClient) -> None:
        async for event in client.events():
            try:
                self._on_event(event)
            except Exception:
                log.exception("event of the keeper could not be handled: %s", event)
        if not self._closed:
            log.warning("the line to the keeper broke")
            await self._recover()

    async def _recover(self) -> None:
        """Until some keeper has said what there is."""
        pause_s = _FIRST_PAUSE_S
        while not self._closed:
            try:
                await self._on_lost()
                return
            except TwofoldError as error:
                log.error("no keeper: %s", error.message)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def close(self) -> None:
        """Let go; the keeper and its instances go on."""
        self._closed = True
        if self._client is not None:
            self._client.close()
        await self._scope.close()


def _is_repeatable(op: str, fields: dict[str, Any]) -> bool:
    """As well: taking away a mount, which one that is away already is."""
    return op in _REPEATABLE or (op == "mount" and fields["mount"]["kind"] == "none")
