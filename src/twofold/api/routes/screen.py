"""A virtual machine's screen, keyboard, mouse and serial console."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from twofold.api.replies import reply, while_connected
from twofold.api.services import services
from twofold.errors import InvalidInput
from twofold.hypervisor import keyboard
from twofold.model.screen import Door, Keys, Pointed, Pointing, Typed

router = APIRouter(tags=["screen"])


@router.get("/instances/{name}/screen", response_model=Door, summary="Where VNC is spoken")
async def way_in(request: Request, name: str) -> Response:
    manager = services(request).instances
    return reply({"socket": manager.screens.way_in(manager.find(name))})


@router.get(
    "/instances/{name}/screen.png",
    summary="A picture of the screen",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def picture(request: Request, name: str) -> Response:
    manager = services(request).instances
    made = await manager.screens.picture(manager.find(name))
    return Response(made.data, media_type="image/png")


@router.post("/instances/{name}/keys", response_model=Typed, summary="Type on its keyboard")
async def type_keys(request: Request, name: str, body: Keys) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    chords = keyboard.of_text(body.text) + [keyboard.of_word(word) for word in body.keys]
    if not chords:
        raise InvalidInput("nothing to type", hint='{"text": "dir\\n"} or {"keys": ["enter"]}')
    work = manager.screens.type(record, chords, delay_s=body.delay_ms / 1000)
    confirmed = await while_connected(request, work)
    return reply({"count": len(chords), "confirmed": confirmed})


@router.post("/instances/{name}/mouse", response_model=Pointed, summary="Move its mouse, click")
async def point(request: Request, name: str, body: Pointing) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    if (body.x is None) != (body.y is None) or (body.x is None and body.click is None):
        raise InvalidInput("a pointer needs x and y, or a click", hint='{"x": 10, "y": 20}')
    at = (body.x, body.y) if body.x is not None and body.y is not None else None
    return reply({"absolute": await manager.screens.point(record, at, body.click)})


@router.get(
    "/instances/{name}/console", response_model=Door, summary="Where its serial line is reached"
)
async def console(request: Request, name: str) -> Response:
    manager = services(request).instances
    return reply({"socket": manager.screens.console(manager.find(name))})
