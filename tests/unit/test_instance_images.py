"""Images as operations: one build for many who want it, cancels that reach the thread, caching."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_house import IMAGE

from twofold.errors import NotFound
from twofold.image.sources import bootstrap
from twofold.image.store import ImageStore
from twofold.instance import images
from twofold.instance.images import ImageDesk
from twofold.model.image import Image
from twofold.model.progress import Progress
from twofold.operations import Operation, Operations, TaskScope


class FakeStore:
    """Knows what was put in; counts how often it is asked."""

    def __init__(self, directory: Path) -> None:
        self.index = directory / "index.json"
        self.index.write_text("[]")
        self.known: dict[str, Image] = {}
        self.asked = 0

    def resolve(self, name: str) -> Image:
        self.asked += 1
        if name not in self.known:
            raise NotFound(f"no image {name!r} here")
        return self.known[name]

    def put(self, name: str, image: Image) -> None:
        self.known |= {name: image, f"{name}:bookworm": image, image.digest: image}
        replaced = self.index.with_suffix(".new")
        replaced.write_text(str(self.known))
        replaced.rename(self.index)

    def layer_dirs(self, image: Image) -> list[str]:
        return ["/layers/top", "/layers/bottom"]


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path)


@pytest.fixture
def desk(store: FakeStore, tmp_path: Path) -> ImageDesk:
    return ImageDesk(store, str(tmp_path), dict)  # type: ignore[arg-type]


async def test_lookups_are_remembered_until_the_index_changes(
    desk: ImageDesk, store: FakeStore
) -> None:
    store.put("alpine", IMAGE)
    for _ in range(5):
        assert desk.find("alpine") is IMAGE
    assert store.asked == 1
    changed = IMAGE.model_copy(update={"size_bytes": 2})
    store.put("alpine", changed)
    assert desk.find("alpine") is changed
    root = await desk.root(IMAGE.digest, Operation("x"))
    assert root.layers == ("/layers/top", "/layers/bottom")


async def test_a_built_in_image_is_built_once_for_all(
    desk: ImageDesk, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = []

    def build(_: object, *, name: str, progress: Progress, **__: Any) -> Image:
        builds.append(name)
        progress(0.5, "half")
        store.put("debian", IMAGE)
        return IMAGE

    monkeypatch.setattr(bootstrap, "build", build)
    operation = Operation("run")
    found = await asyncio.gather(*(desk.ensure("debian", operation) for _ in range(10)))
    assert builds == ["debian:bookworm"]
    assert all(image.digest == IMAGE.digest for image in found)
    assert [step.title for step in operation.steps] == ["Building the image debian:bookworm"]


@pytest.mark.parametrize("name", ["nosuch", "Bad Name!", "sha256:zz"])
async def test_what_is_not_built_in_is_not_found(desk: ImageDesk, name: str) -> None:
    with pytest.raises(NotFound):
        await desk.ensure(name, Operation("run"))


async def test_a_cancel_reaches_the_thread_and_is_waited_for(
    desk: ImageDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, unwound = threading.Event(), threading.Event(), threading.Event()

    def build(_: object, *, progress: Progress, **__: Any) -> Image:
        begun.set()
        try:
            go_on.wait(10)
            progress(0.1, "more")
        except BaseException:
            unwound.set()
            raise
        raise AssertionError("it was not told to stop")

    monkeypatch.setattr(bootstrap, "build", build)
    async with TaskScope() as scope:
        operation = Operations(scope).start("image.build", lambda op: desk.build(op, name="debian"))
        await asyncio.to_thread(begun.wait, 10)
        operation.cancel()
        await asyncio.sleep(0.05)
        assert not operation.ended  # the thread still works: nothing is over yet
        go_on.set()
        with pytest.raises(Exception, match="cancelled"):
            await operation.wait()
        assert unwound.is_set()


async def test_builds_do_not_hold_up_short_work(
    desk: ImageDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def build(_: object, **__: Any) -> Image:
        release.wait(10)
        return IMAGE

    monkeypatch.setattr(bootstrap, "build", build)
    many = [
        asyncio.ensure_future(desk.build(Operation("b"), name=f"debian-{n}"))
        for n in range(images.MAX_AT_ONCE * 8)
    ]
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 42), 5) == 42
    release.set()
    assert await asyncio.gather(*many) == [IMAGE] * len(many)
    desk.close()


async def test_a_path_is_imported_once(tmp_path: Path) -> None:
    """Where a name is wanted a file does as well; the same file is not imported twice."""
    path = tmp_path / "boot.img"
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1440 * 1024 - 512))
    desk = ImageDesk(ImageStore(str(tmp_path / "images")), str(tmp_path / "images"), dict)
    operation = Operation("x")
    first, second = await asyncio.gather(*(desk.ensure(str(path), operation) for _ in range(2)))
    assert first == second
    assert first.names == ["boot:latest"]
    assert [step.title for step in operation.steps] == ["Importing boot.img"]
    with pytest.raises(NotFound, match="no-such"):
        await desk.ensure(str(tmp_path / "no-such.img"), operation)
    desk.close()


async def test_a_name_that_goes_to_another_image_is_said(tmp_path: Path) -> None:
    floppy = bytes(510) + b"\x55\xaa" + bytes(1440 * 1024 - 512)
    first, second = tmp_path / "first.img", tmp_path / "second.img"
    first.write_bytes(floppy)
    second.write_bytes(floppy[:-1] + b"x")
    desk = ImageDesk(ImageStore(str(tmp_path / "images")), str(tmp_path / "images"), dict)
    operation = Operation("x")
    one = await desk.import_file(operation, path=str(first), name="boot")
    await desk.import_file(operation, path=str(first), name="boot")
    assert operation.warnings == []
    await desk.import_file(operation, path=str(second), name="boot")
    short = one.digest.partition(":")[2][:12]
    words = f"'boot:latest' was another image until now, which stays as {short}"
    assert operation.warnings == [(words, f"twofold image show {short}")]
    assert desk.find(short).digest == one.digest
    desk.close()
