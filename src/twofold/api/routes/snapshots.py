"""Snapshots of an instance, and putting a machine to sleep."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from twofold.api.replies import operation_reply, reply
from twofold.api.services import services
from twofold.model.instance import Instance, Name, Strict
from twofold.model.snapshot import Snapshot
from twofold.operations import Operation

router = APIRouter(tags=["snapshots"])

Comment = Annotated[str, StringConstraints(pattern=r"^[^\x00\n\r]*$", max_length=1000)]


class SnapshotRequest(Strict):
    name: Name | None = Field(default=None, description="null: snap-1, snap-2 …")
    memory: bool = Field(default=False, description="of a running virtual machine")
    comment: Comment = Field(default="", examples=["before the upgrade"])


class RestoreRequest(Strict):
    start: bool | None = Field(
        default=None, description="null: if it runs now, or the snapshot has its memory"
    )
    verify: bool | None = Field(
        default=None,
        description="Only what is what was written to the snapshot. null: where files are copied; "
        "not where the file system shares their blocks, for reading takes longer",
    )


class Freed(BaseModel):
    size_bytes: int


@router.get("/instances/{name}/snapshots", response_model=list[Snapshot], summary="Oldest first")
async def list_snapshots(request: Request, name: str) -> Response:
    manager = services(request).instances
    found = await manager.snapshots.select(manager.find(name))
    return reply([one.model_dump(mode="json") for one in found])


@router.post(
    "/instances/{name}/snapshots",
    response_model=Snapshot,
    status_code=201,
    summary="Keep it as it is now",
)
async def create_snapshot(
    request: Request, name: str, body: SnapshotRequest | None = None
) -> Response:
    house = services(request)
    record = house.instances.find(name)
    wish = body or SnapshotRequest()

    async def work(operation: Operation) -> Any:
        made = await house.instances.snapshots.create(
            record, operation, name=wish.name, memory=wish.memory, comment=wish.comment
        )
        return made.model_dump(mode="json")

    operation = house.operations.start("snapshot.create", work)
    return await operation_reply(request, operation, status=201)


@router.get(
    "/instances/{name}/snapshots/{snapshot}", response_model=Snapshot, summary="One snapshot"
)
async def show_snapshot(request: Request, name: str, snapshot: str) -> Response:
    manager = services(request).instances
    found = await manager.snapshots.find(manager.find(name), snapshot)
    return reply(found.model_dump(mode="json"))


@router.post(
    "/instances/{name}/snapshots/{snapshot}/restore",
    response_model=Instance,
    summary="Make the instance what it was then",
)
async def restore_snapshot(
    request: Request, name: str, snapshot: str, body: RestoreRequest | None = None
) -> Response:
    """What it is now is lost. An instance that runs is stopped; if the restoring fails before that
    it runs on."""
    house = services(request)
    record = house.instances.find(name)
    wish = body or RestoreRequest()

    async def work(operation: Operation) -> Any:
        await house.instances.snapshots.restore(
            record, snapshot, operation, start=wish.start, verified=wish.verify
        )
        return record.view()

    return await operation_reply(request, house.operations.start("snapshot.restore", work))


@router.post(
    "/instances/{name}/snapshots/{snapshot}/verify",
    response_model=Snapshot,
    summary="Read all of it and compare it with its checksums",
)
async def verify_snapshot(request: Request, name: str, snapshot: str) -> Response:
    house = services(request)
    record = house.instances.find(name)

    async def work(operation: Operation) -> Any:
        found = await house.instances.snapshots.verify(record, snapshot, operation)
        return found.model_dump(mode="json")

    return await operation_reply(request, house.operations.start("snapshot.verify", work))


@router.delete(
    "/instances/{name}/snapshots/{snapshot}", response_model=Freed, summary="Remove a snapshot"
)
async def remove_snapshot(request: Request, name: str, snapshot: str) -> Response:
    manager = services(request).instances
    return reply({"size_bytes": await manager.snapshots.remove(manager.find(name), snapshot)})


@router.post(
    "/instances/{name}/suspend",
    response_model=Instance,
    summary="Put a virtual machine to sleep on the disk",
)
async def suspend_instance(request: Request, name: str) -> Response:
    house = services(request)
    record = house.instances.find(name)

    async def work(operation: Operation) -> Any:
        await house.instances.suspension.suspend(record, operation)
        return record.view()

    return await operation_reply(request, house.operations.start("instance.suspend", work))
