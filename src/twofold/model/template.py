"""A template as the API shows it. No behaviour."""

from typing import Any

from pydantic import BaseModel, Field


class Template(BaseModel):
    """A frozen virtual machine; first starts of its shape are forks of it."""

    key: str = Field(description="16 hex digits: stands for all that shapes the guest")
    shape: dict[str, Any] = Field(
        description="image, hardware, vcpus, memory_bytes, network, volumes, kernel, accelerator"
    )
    size_bytes: int = Field(description="blocks on the disk")
    loaded: bool = Field(description="its memory is in the daemon's, ready to be forked")
    created_at: str
    used_at: str
