"""What the routes work with: handed over by the daemon's wiring, found on ``app.state``."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from twofold.instance.images import ImageDesk
from twofold.instance.manager import InstanceManager
from twofold.model.paths import Paths
from twofold.operations import Operations


@dataclass(frozen=True, kw_only=True)
class Services:
    paths: Paths
    instances: InstanceManager
    images: ImageDesk
    operations: Operations
    warnings: list[str]
    doctor: Callable[[], Awaitable[list[dict[str, Any]]]]


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
