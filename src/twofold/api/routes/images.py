"""Images: list, show, build, import, remove. A name may hold ``:`` and ``/``."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from twofold.api.replies import operation_reply, reply
from twofold.api.services import services
from twofold.instance.recognition import recognised
from twofold.model.image import Image
from twofold.model.instance import Line, Strict
from twofold.operations import Operation

router = APIRouter(tags=["images"])


class BuildRequest(Strict):
    name: Line = Field(examples=["debian"])
    suite: Line | None = Field(default=None, examples=["bookworm"])
    include: list[Annotated[Line, Field(max_length=128)]] = Field(
        default_factory=list, max_length=1024, examples=[["apache2"]]
    )
    variant: Line | None = Field(default=None, examples=["minbase"])
    arch: Line | None = Field(default=None, description="null: this host's", examples=["amd64"])
    force: bool = False


class ImportRequest(Strict):
    path: Line = Field(examples=["/tmp/alpine-minirootfs.tar.gz", "/tmp/openbsd.img"])
    name: Line | None = Field(default=None, examples=["alpine"])
    format: Line | None = Field(
        default=None,
        description="of a disk: qcow2, raw, vmdk, vdi, vhdx, iso, floppy; null: its content tells",
        examples=["raw"],
    )
    arch: Line | None = Field(
        default=None,
        description="of a disk or medium: its processor; null: its content tells",
        examples=["arm64"],
    )


@router.get("/images", response_model=list[Image], summary="All images")
async def list_images(request: Request) -> Response:
    images = await services(request).images.select()
    return reply([image.model_dump(mode="json") for image in images])


@router.post("/images/build", response_model=Image, status_code=201, summary="Build a Debian image")
async def build_image(request: Request, body: BuildRequest) -> Response:
    house = services(request)

    async def work(operation: Operation) -> Any:
        image = await house.images.build(
            operation,
            name=body.name,
            suite=body.suite,
            include=body.include,
            variant=body.variant,
            arch=body.arch,
            force=body.force,
        )
        return image.model_dump(mode="json")

    operation = house.operations.start("image.build", work)
    operation.subject = body.name
    return await operation_reply(request, operation, status=201)


@router.post(
    "/images/import",
    response_model=Image,
    status_code=201,
    summary="Import an archive, disk or medium that lies on the daemon's host",
)
async def import_image(request: Request, body: ImportRequest) -> Response:
    house = services(request)

    async def work(operation: Operation) -> Any:
        image = await house.images.import_file(
            operation, path=body.path, name=body.name, disk_format=body.format, arch=body.arch
        )
        return (await recognised(image)).model_dump(mode="json")

    operation = house.operations.start("image.import", work)
    operation.subject = body.name or body.path
    return await operation_reply(request, operation, status=201)


@router.get("/images/{name:path}", response_model=Image, summary="One image")
async def show_image(request: Request, name: str) -> Response:
    image = await recognised(services(request).images.find(name))
    return reply(image.model_dump(mode="json"))


@router.post("/images/{name:path}/verify", response_model=Image, summary="Check a disk's content")
async def verify_image(request: Request, name: str) -> Response:
    """All of it is read and compared with its checksum; an error says that it is damaged."""
    house = services(request)

    async def work(operation: Operation) -> Any:
        image = await house.images.verify(operation, name=name)
        return (await recognised(image)).model_dump(mode="json")

    operation = house.operations.start("image.verify", work)
    return await operation_reply(request, operation)


@router.delete("/images/{name:path}", status_code=204, summary="Remove an image")
async def remove_image(request: Request, name: str, force: bool = False) -> Response:
    house = services(request)
    await house.images.remove(name, force=force)
    await house.instances.templates.retain(await house.images.select())
    return Response(status_code=204)
