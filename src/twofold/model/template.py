"""A template as the API shows it. No behaviour."""

from typing import Any

from pydantic import BaseModel, Field

from twofold.model.instance import Strict


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


class TemplateLimitRequest(Strict):
    limit_bytes: int = Field(ge=1 << 20, le=1 << 60, examples=[8 << 30])


class TemplateLimit(BaseModel):
    """What all templates may take on the disk; the one used last stays in any case."""

    limit_bytes: int
    size_bytes: int = Field(description="what they take now: blocks on the disk")
