"""An image as the API shows it. No behaviour."""

from pydantic import BaseModel, Field


class ImageConfig(BaseModel):
    """The part of the OCI image configuration that shapes a process."""

    entrypoint: list[str] = Field(default_factory=list)
    cmd: list[str] = Field(default_factory=list)
    env: list[str] = Field(default_factory=list)
    working_dir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    exposed_ports: list[str] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)


class Image(BaseModel):
    """``digest`` is that of the OCI manifest; ``layers`` are diff ids, lowest first."""

    digest: str = Field(examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c"])
    names: list[str]
    architecture: str
    os: str = "linux"
    created_at: str
    size_bytes: int = Field(description="unpacked size of all layers")
    layers: list[str]
    config: ImageConfig
    source: str = Field(description="where it came from", examples=["mmdebstrap bookworm"])
