"""Screens, consoles, keys and pointers as the API shows them. No behaviour."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from twofold.model.instance import Line, Strict

Coordinate = Annotated[int, Field(ge=-16384, le=16384)]


class Door(BaseModel):
    """The way in: a unix stream socket on the daemon's host, 0660 root:twofold."""

    socket: str = Field(examples=["/run/twofold/instances/3f2a9c0d1e4b5a67/vnc.sock"])


class Keys(Strict):
    """``text`` is typed first, then ``keys`` one after the other."""

    text: Annotated[str, StringConstraints(max_length=16384)] = Field(
        default="", description="as on a US keyboard; a line end is the Enter key"
    )
    keys: list[Line] = Field(default_factory=list, max_length=256, examples=[["ctrl-alt-f2"]])
    delay_ms: int = Field(default=20, ge=0, le=10_000, description="between two of them")


class Typed(BaseModel):
    count: int = Field(description="how many keys or chords")
    confirmed: bool = Field(
        description="the guest was seen to fetch them; false where that cannot be seen"
    )


class Pointing(Strict):
    x: Coordinate | None = None
    y: Coordinate | None = None
    click: Annotated[str, StringConstraints(pattern="^(left|right|middle|double)$")] | None = None


class Pointed(BaseModel):
    absolute: bool = Field(
        description="x and y were a place on the screen in pixels; false: steps of a mouse"
    )
