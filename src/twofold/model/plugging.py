"""What is plugged into an instance that exists, or taken out of it. No behaviour."""

from typing import Annotated

from pydantic import Field, StringConstraints

from twofold.model.instance import Line, Strict, Volume


class PlugWish(Strict):
    """Exactly one of the three."""

    volume: Volume | None = None
    disk_bytes: int | None = Field(default=None, ge=1 << 20, description="an empty disk")
    network: Annotated[str, StringConstraints(pattern=r"^default$")] | None = Field(
        default=None, description="a network card, for who has none"
    )


class UnplugWish(Strict):
    """Exactly one of the three. What is on a disk goes with it."""

    volume: Line | None = Field(default=None, description="its target", examples=["/data"])
    disk: int | None = Field(default=None, ge=0, le=64)
    network: bool = False
    force: bool = Field(default=False, description="also when it is in use inside")
