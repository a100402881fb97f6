"""Operations: long work that goes on when its client has left."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from twofold.api.replies import reply
from twofold.api.services import services
from twofold.model.operation import Operation

router = APIRouter(tags=["operations"])


@router.get("/operations", response_model=list[Operation], summary="Running and recent ones")
async def list_operations(request: Request) -> Response:
    found = services(request).operations.list()
    return reply([operation.model().model_dump(mode="json") for operation in found])


@router.get("/operations/{operation_id}", response_model=Operation, summary="One operation")
async def show_operation(request: Request, operation_id: str) -> Response:
    operation = services(request).operations.get(operation_id)
    return reply(operation.model().model_dump(mode="json"))


@router.delete(
    "/operations/{operation_id}", response_model=Operation, summary="Cancel: stop and unwind"
)
async def cancel_operation(request: Request, operation_id: str, wait: bool = False) -> Response:
    """With ``wait`` the answer comes once all that it had made is gone again."""
    operation = services(request).operations.cancel(operation_id)
    if wait:
        await operation.settled()
    return reply(operation.model().model_dump(mode="json"))
