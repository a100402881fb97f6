"""What is known about an operating system, as the API shows it. No behaviour."""

from typing import Literal

from pydantic import BaseModel, Field


class OsSummary(BaseModel):
    """``virtio``: are drivers in the box? Unknown where nothing is known about its drivers."""

    id: str = Field(examples=["openbsd7.0"])
    name: str = Field(examples=["OpenBSD 7.0"])
    family: str
    release_date: str | None
    eol_date: str | None
    release_status: str = Field(description="released, prerelease, rolling or snapshot")
    virtio: Literal["yes", "partly", "no", "unknown"]
    origins: list[str] = Field(description="who knows it", examples=[["osinfo-db"]])


class OsChoice(BaseModel):
    """One thing a guest gets, and the rule that chose it."""

    value: str | int | bool | list[str]
    reason: str


class OsProfile(BaseModel):
    choices: dict[str, OsChoice]
    warnings: list[str]


class OsResources(BaseModel):
    """None: nothing is said about it."""

    vcpus: int | None
    memory_bytes: int | None
    disk_bytes: int | None


class OsDetail(OsSummary):
    """``profiles`` are ``emulated`` and ``virtio``; ``hardware`` names the one that is taken when
    nothing is asked for, and ``hardware_reason`` says why."""

    uri: str
    also_called: list[str]
    version: str
    vendor: str
    codename: str
    upgrades: str | None
    derives_from: list[str] = Field(description="all, the nearest first")
    drivers: dict[str, str] = Field(description="device: who says so, and since when")
    addable: list[str] = Field(description="devices whose drivers can be added from a medium")
    firmware: dict[str, str]
    minimum: OsResources
    recommended: OsResources
    resources_source: str | None
    cloud_init: bool = Field(description="its published disk images are set up by cloud-init")
    hardware: str
    hardware_reason: str
    profiles: dict[str, OsProfile]


class OsMatch(BaseModel):
    """The system on a medium. Not ``certain``: it is a newer release than the database knows, or
    only the file's name speaks for it. ``others`` would have fitted as well."""

    id: str
    name: str
    rule: str
    certain: bool
    others: list[str]
    architecture: str | None
    live: bool
    installer_reboots: int | None
