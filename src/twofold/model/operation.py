"""A long piece of work as the API shows it. No behaviour."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field


class OperationStatus(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Step(BaseModel):
    """One step. ``progress`` is 0..1, or null where the size of the work is unknown."""

    index: int
    title: str = Field(examples=["Unpacking the base system"])
    status: OperationStatus = OperationStatus.RUNNING
    progress: float | None = None
    message: str = ""
    elapsed_s: float = 0.0


class Operation(BaseModel):
    id: str
    kind: str = Field(examples=["image.build"])
    subject: str = Field(default="", description="the instance or image that it is about")
    status: OperationStatus = OperationStatus.RUNNING
    steps: list[Step] = Field(default_factory=list)
    result: Any = None
    error: dict[str, Any] | None = None
