"""Operating systems: what is known about them and what a guest of each would get."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from twofold import osinfo
from twofold.api.replies import reply
from twofold.model.guest_os import OsDetail, OsSummary
from twofold.osinfo import report

router = APIRouter(tags=["operating systems"])


@router.get("/os", response_model=list[OsSummary], summary="Known operating systems")
async def list_systems(
    pattern: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """``pattern`` is a part of the id or name, or a glob for the whole of either."""
    found = await asyncio.to_thread(osinfo.select, pattern)
    return reply([report.summary(system).model_dump(mode="json") for system in found])


@router.get("/os/{name:path}", response_model=OsDetail, summary="One operating system")
async def show_system(name: str) -> Response:
    found = await asyncio.to_thread(osinfo.find, name)
    return reply(report.detail(found).model_dump(mode="json"))
