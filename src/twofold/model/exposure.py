"""What stands between an instance and its host, as the API shows it. No behaviour."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from twofold.model.instance import Hardware, Isolation, State


class Basis(StrEnum):
    """How a sentence is known."""

    VERIFIED = "verified"  # read from the living processes, and as planned
    PLANNED = "planned"  # what it is started with; not running, or not to be seen from outside
    DIFFERS = "differs"  # read from the living processes, and not as planned


class Barrier(BaseModel):
    """One thing that stands in between, in words. ``warning``: weaker than by default."""

    topic: str = Field(examples=["system calls"])
    words: str = Field(examples=["299 of 368 reachable; the others fail"])
    basis: Basis
    warning: bool = False
    details: Any = Field(default=None, description="the same as data; its shape is the topic's")


class Exposure(BaseModel):
    id: str
    name: str
    isolation: Isolation
    hardware: Hardware | None = None
    state: State
    summary: str
    barriers: list[Barrier]
