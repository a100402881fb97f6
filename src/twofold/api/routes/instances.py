"""Instances and the verbs on them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from twofold.api.replies import operation_reply, raw_reply, reply, while_connected
from twofold.api.services import services
from twofold.errors import InvalidInput
from twofold.instance import states
from twofold.model.exposure import Exposure
from twofold.model.instance import Instance, InstanceChange, InstanceSpec, Line, State, Strict
from twofold.model.plugging import PlugWish, UnplugWish
from twofold.model.usage import ProcessInfo, Use
from twofold.operations import Operation

router = APIRouter(tags=["instances"])

Ticket = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class CreateRequest(Strict):
    spec: InstanceSpec = Field(
        examples=[{"image": "debian", "command": ["cat", "/etc/os-release"], "auto_remove": True}]
    )
    start: bool = False
    ticket: Ticket | None = Field(
        default=None, description="stdio that was parked at the door; see architecture.md"
    )


class StartRequest(Strict):
    ticket: Ticket | None = None


class StopRequest(Strict):
    timeout_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        description="before it is killed; null: 10, and 60 for a virtual machine with `system`",
    )
    discard: bool = Field(
        default=False, description="give up the memory of a suspended machine; stops nothing else"
    )


class ForkRequest(Strict):
    count: int = Field(default=1, description="from 1 to 100")
    name: Line | None = Field(
        default=None, description="{n} is counted up", examples=["worker-{n}"]
    )


class KillRequest(Strict):
    signal: Line = Field(default="SIGKILL", examples=["SIGHUP"])


@router.get("/instances", response_model=list[Instance], summary="Instances, oldest first")
async def list_instances(
    request: Request,
    everything: Annotated[bool, Query(alias="all", description="also those that do not run")] = (
        False
    ),
) -> Response:
    records = services(request).instances.select(everything=everything)
    return raw_reply(b"[" + b",".join(record.json() for record in records) + b"]")


@router.post(
    "/instances",
    response_model=Instance,
    status_code=201,
    summary="Create an instance, and start it with start=true",
)
async def create_instance(request: Request, body: CreateRequest) -> Response:
    house = services(request)
    if body.ticket and not body.start:
        raise InvalidInput("a ticket needs start=true", hint='{"spec": …, "start": true}')

    async def work(operation: Operation) -> Any:
        if body.start:
            record = await house.instances.creation.run(
                body.spec, operation, ticket=body.ticket or ""
            )
        else:
            record = await house.instances.creation.create(body.spec, operation)
        return record.view()

    operation = house.operations.start("instance.run" if body.start else "instance.create", work)
    operation.subject = body.spec.name or ""
    gone = body.ticket is not None
    return await operation_reply(request, operation, status=201, cancel_when_gone=gone)


@router.get("/instances/{name}", response_model=Instance, summary="One instance")
async def show_instance(request: Request, name: str) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    said = await manager.agents.about(record)
    return raw_reply(record.json()) if said is None else reply({**record.view(), "guest": said})


@router.patch(
    "/instances/{name}", response_model=Instance, summary="Change limits, also while it runs"
)
async def change_instance(request: Request, name: str, body: InstanceChange) -> Response:
    """What has to wait for the next start is said in a warning."""
    house = services(request)
    record = house.instances.find(name)

    async def work(operation: Operation) -> Any:
        if not await house.instances.refitting.change(record, body, operation):
            await house.instances.limits.change(record, body, operation)
        return record.view()

    return await operation_reply(request, house.operations.start("instance.change", work))


@router.post(
    "/instances/{name}/plug",
    response_model=Instance,
    summary="Give it a directory, a disk or a network card, also while it runs",
)
async def plug_instance(request: Request, name: str, body: PlugWish) -> Response:
    house = services(request)
    record = house.instances.find(name)

    async def work(operation: Operation) -> Any:
        await house.instances.plugging.plug(record, body, operation)
        return record.view()

    return await operation_reply(request, house.operations.start("instance.plug", work))


@router.post(
    "/instances/{name}/unplug", response_model=Instance, summary="Take one of these out again"
)
async def unplug_instance(request: Request, name: str, body: UnplugWish) -> Response:
    house = services(request)
    record = house.instances.find(name)

    async def work(operation: Operation) -> Any:
        await house.instances.plugging.unplug(record, body, operation)
        return record.view()

    return await operation_reply(request, house.operations.start("instance.unplug", work))


@router.delete("/instances/{name}", status_code=204, summary="Remove an instance")
async def remove_instance(request: Request, name: str, force: bool = False) -> Response:
    house = services(request)
    record = house.instances.find(name)

    async def work(operation: Operation) -> Any:
        await house.instances.lifecycle.remove(record, operation, force=force)

    operation = house.operations.start("instance.remove", work)
    return await operation_reply(request, operation)


@router.post("/instances/{name}/start", response_model=Instance, summary="Start it")
async def start_instance(request: Request, name: str, body: StartRequest | None = None) -> Response:
    house = services(request)
    record = house.instances.find(name)
    ticket = (body.ticket if body else None) or ""

    async def work(operation: Operation) -> Any:
        await house.instances.lifecycle.start(record, operation, ticket=ticket)
        return record.view()

    operation = house.operations.start("instance.start", work)
    return await operation_reply(request, operation, cancel_when_gone=bool(ticket))


@router.post("/instances/{name}/stop", response_model=Instance, summary="Stop it gracefully")
async def stop_instance(request: Request, name: str, body: StopRequest | None = None) -> Response:
    house = services(request)
    record = house.instances.find(name)
    wish = body or StopRequest()

    async def work(operation: Operation) -> Any:
        if wish.discard:
            await house.instances.suspension.discard(record)
        else:
            await house.instances.lifecycle.stop(record, operation, timeout_s=wish.timeout_s)
        return record.view()

    return await operation_reply(request, house.operations.start("instance.stop", work))


@router.post("/instances/{name}/restart", response_model=Instance, summary="Stop and start it")
async def restart_instance(
    request: Request, name: str, body: StopRequest | None = None
) -> Response:
    house = services(request)
    record = house.instances.find(name)
    timeout_s = (body or StopRequest()).timeout_s

    async def work(operation: Operation) -> Any:
        await house.instances.restart(record, operation, timeout_s=timeout_s)
        return record.view()

    return await operation_reply(request, house.operations.start("instance.restart", work))


@router.post(
    "/instances/{name}/fork",
    response_model=list[Instance],
    status_code=201,
    summary="More instances like it, from this moment on",
)
async def fork_instance(request: Request, name: str, body: ForkRequest | None = None) -> Response:
    house = services(request)
    record = house.instances.find(name)
    wish = body or ForkRequest()

    async def work(operation: Operation) -> Any:
        forks = await house.instances.forks.fork(
            record, operation, count=wish.count, pattern=wish.name
        )
        return [fork.view() for fork in forks]

    operation = house.operations.start("instance.fork", work)
    return await operation_reply(request, operation, status=201)


@router.post("/instances/{name}/kill", response_model=Instance, summary="Send a signal")
async def kill_instance(request: Request, name: str, body: KillRequest | None = None) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    await manager.lifecycle.kill(record, (body or KillRequest()).signal)
    return raw_reply(record.json())


@router.post("/instances/{name}/pause", response_model=Instance, summary="Freeze it")
async def pause_instance(request: Request, name: str) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    await manager.lifecycle.pause(record)
    return raw_reply(record.json())


@router.post("/instances/{name}/resume", response_model=Instance, summary="Let it go on")
async def resume_instance(request: Request, name: str) -> Response:
    """One that is paused, or one that is suspended: that is started from its memory."""
    house = services(request)
    record = house.instances.find(name)

    async def work(operation: Operation) -> Any:
        if record.state is State.SUSPENDED:
            await house.instances.lifecycle.start(record, operation)
        else:
            await house.instances.lifecycle.resume(record)
        return record.view()

    return await operation_reply(request, house.operations.start("instance.resume", work))


@router.get(
    "/instances/{name}/processes",
    response_model=list[ProcessInfo],
    summary="What runs inside",
)
async def processes_of_instance(request: Request, name: str) -> Response:
    manager = services(request).instances
    found = await manager.gauge.processes(manager.find(name))
    return reply([process.model_dump(mode="json") for process in found])


@router.get(
    "/instances/{name}/exposure",
    response_model=Exposure,
    summary="What stands between it and the host, in words",
)
async def exposure_of_instance(request: Request, name: str) -> Response:
    manager = services(request).instances
    found = await manager.exposer.describe(manager.find(name))
    return reply(found.model_dump(mode="json"))


@router.get("/usage", response_model=list[Use], summary="One sample of what instances use")
async def usage(
    request: Request,
    name: Annotated[list[str], Query(description="of these; without: all that run")] = [],  # noqa: B006
) -> Response:
    manager = services(request).instances
    records = [manager.find(each) for each in name] or [
        record for record in manager.select(everything=False) if states.has("stats", record.state)
    ]
    found = await manager.gauge.sample(records, strict=bool(name))
    return reply([use.model_dump(mode="json") for use in found])


@router.get("/instances/{name}/wait", summary="Wait until it is stopped or removed")
async def wait_for_instance(
    request: Request,
    name: str,
    condition: Annotated[str, Query(pattern="^(stopped|removed)$")] = "stopped",
) -> Response:
    manager = services(request).instances
    record = manager.find(name)
    exit_code = await while_connected(request, manager.wait(record, condition))
    return reply({"exit_code": exit_code})
