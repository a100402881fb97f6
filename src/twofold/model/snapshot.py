"""A snapshot as the API shows it. No behaviour."""

from enum import StrEnum

from pydantic import BaseModel, Field


class Consistency(StrEnum):
    """``stopped``: nothing ran. ``frozen``: what ran was held while the files were copied.
    ``crash``: as after a power cut. ``memory``: with memory, so there is nothing to recover."""

    STOPPED = "stopped"
    FROZEN = "frozen"
    CRASH = "crash"
    MEMORY = "memory"


class Snapshot(BaseModel):
    """An instance as it was. Restoring takes a copy of it, so it can be restored again."""

    name: str
    instance: str
    parent: str | None = Field(
        default=None, description="the snapshot that the instance descended from at that moment"
    )
    current: bool = Field(description="what the instance is now descends from this one")
    memory: bool
    consistency: Consistency
    standstill_s: float | None = Field(
        default=None, description="for how long the instance stood still, in seconds"
    )
    size_bytes: int = Field(description="blocks on the disk, were nothing of it shared")
    comment: str
    created_at: str
