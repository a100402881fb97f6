"""The daemon itself and the machine it runs on."""

import os

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from twofold import __version__
from twofold.api.replies import reply
from twofold.api.services import services

API_VERSION = 1

router = APIRouter(tags=["host"])


@router.get("/version", summary="Who answers")
async def version(request: Request) -> Response:
    house = services(request)
    return reply(
        {
            "version": __version__,
            "api": API_VERSION,
            "root": house.paths.root,
            "pid": os.getpid(),
            "instances": len(house.instances.records),
            "warnings": house.warnings,
        }
    )


@router.get("/doctor", summary="Every fact that decides how things run")
async def doctor(request: Request) -> Response:
    return reply(await services(request).doctor())
