"""The daemon's line to the keeper: connects when first needed, and again after a keeper's end.

Events go to ``on_event``, in order. When the line breaks ``on_lost`` is told; it will find out
from a new keeper what is left. Holds no opinion on instances.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from twofold.model.paths import Paths
from twofold.operations import TaskScope
from twofold.runtime.client import KeeperClient

log = logging.getLogger("twofold.keeper")


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

    async def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        client = self._client
        if client is None or client.closed:
            client = await self._connect()
        return await client.call(op, fds, **fields)

    async def _connect(self) -> KeeperClient:
        async with self._connecting:
            if self._client is not None and not self._client.closed:
                return self._client
            self._client = client = await KeeperClient.connect(self._paths)
            self._scope.spawn(self._listen(client), name="keeper events")
            return client

    async def _listen(self, client: KeeperClient) -> None:
        async for event in client.events():
            try:
                self._on_event(event)
            except Exception:
                log.exception("event of the keeper could not be handled: %s", event)
        if not self._closed:
            log.error("the line to the keeper broke")
            await self._on_lost()

    async def close(self) -> None:
        """Let go; the keeper and its instances go on."""
        self._closed = True
        if self._client is not None:
            self._client.close()
        await self._scope.close()
