"""What the API, the SDK's shapes and ``image show`` say of operating systems."""

import struct
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from twofold.api import replies
from twofold.api.routes import guest_os
from twofold.errors import TwofoldError
from twofold.image.sources.file import import_file
from twofold.image.store import ImageStore
from twofold.instance.recognition import recognised
from twofold.model.guest_os import OsDetail, OsSummary


async def get(path: str) -> httpx.Response:
    app = FastAPI()
    app.add_exception_handler(TwofoldError, replies.on_twofold_error)
    app.include_router(guest_os.router, prefix="/v1")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path)


async def test_the_list_has_the_documented_shape() -> None:
    reply = await get("/v1/os?pattern=bsd7.")
    found = [OsSummary.model_validate(item) for item in reply.json()]
    assert "openbsd7.6" in [one.id for one in found]
    assert all("bsd7." in f"{one.id} {one.name.lower()}" for one in found)
    dates = [one.release_date or "9999" for one in found if one.id.startswith("openbsd")]
    assert dates == sorted(dates)


async def test_one_system_has_both_profiles_and_says_which_is_taken() -> None:
    shown = OsDetail.model_validate((await get("/v1/os/win11")).json())
    assert set(shown.profiles) == {"emulated", "virtio"}
    assert (shown.hardware, shown.virtio) == ("emulated", "no")
    assert "virtio-net" in shown.addable
    assert shown.firmware["bios"].startswith("no (osinfo-db")
    emulated = shown.profiles["emulated"]
    assert emulated.choices["tpm"].value is True
    assert emulated.choices["memory_bytes"].value == 4 << 30
    assert shown.profiles["virtio"].warnings


async def test_by_its_uri_and_in_capitals() -> None:
    reply = await get("/v1/os/http%3A%2F%2Fopenbsd.org%2Fopenbsd%2F7.0")
    assert reply.json()["id"] == "openbsd7.0"
    assert (await get("/v1/os/OpenBSD7.0")).json()["id"] == "openbsd7.0"


@pytest.mark.parametrize("name", ["nosuchsystem", "..%2F..%2Fetc", "%00", "a" * 5000])
async def test_what_is_not_known_is_404_with_a_hint(name: str) -> None:
    reply = await get(f"/v1/os/{name}")
    assert reply.status_code == 404
    assert reply.json()["error"]["hint"]


async def test_a_pattern_has_a_limit() -> None:
    assert (await get(f"/v1/os?pattern={'*a' * 64}")).json() == []
    assert (await get(f"/v1/os?pattern={'*a' * 65}")).status_code == 422


def iso(directory: Path, *, volume_id: str, system_id: str = "") -> Path:
    """The volume descriptors of ISO 9660 and nothing else: what identifies a medium."""
    sectors = 20
    primary = bytearray(2048)
    primary[:6] = b"\x01CD001"
    primary[8:40] = system_id.encode().ljust(32)
    primary[40:72] = volume_id.encode().ljust(32)
    struct.pack_into("<I", primary, 80, sectors)
    struct.pack_into("<H", primary, 128, 2048)
    content = bytes(16 * 2048) + bytes(primary) + b"\xffCD001".ljust(2048, b"\0")
    path = directory / "medium.iso"
    path.write_bytes(content.ljust(sectors * 2048, b"\0"))
    return path


@pytest.mark.parametrize(
    ("identifiers", "expected"),
    [
        ({"volume_id": "Debian 12.5.0 amd64 n"}, "debian12"),
        ({"volume_id": "OpenBSD/amd64   7.6 Install CD", "system_id": "OpenBSD"}, "openbsd7.6"),
        ({"volume_id": "MY HOLIDAYS"}, None),
    ],
)
async def test_an_imported_medium_shows_its_system(
    tmp_path: Path, identifiers: dict[str, str], expected: str | None
) -> None:
    store = ImageStore(str(tmp_path / "images"))
    image = await recognised(import_file(store, str(iso(tmp_path, **identifiers))))
    assert image.disk is not None
    assert image.disk.volume_id == identifiers["volume_id"]
    assert (image.identified.id if image.identified else None) == expected
