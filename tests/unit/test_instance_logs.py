"""Reading a log: tails across segments, following through rotations, ending with the instance."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.errors import InvalidInput
from twofold.instance.logs import _seek_to_tail, read_console, read_log
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, State


def record(state: State = State.STOPPED) -> Record:
    return Record(
        id="0" * 16,
        name="web",
        spec=InstanceSpec(image="alpine"),
        image_digest="sha256:1",
        id_base=1 << 20,
        state=state,
    )


def write(directory: Path, **segments: str) -> None:
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    for name, text in segments.items():
        (logs / name.replace("_", ".")).write_text(text)


async def everything(directory: Path, **options: int) -> str:
    chunks = [chunk async for chunk in read_log(record(), str(directory), **options)]  # type: ignore[arg-type]
    return b"".join(chunks).decode()


async def test_all_segments_in_order(tmp_path: Path) -> None:
    write(tmp_path, current_2="1\n2\n", current_1="3\n", current="4\n5\n")
    assert await everything(tmp_path) == "1\n2\n3\n4\n5\n"


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(0, ""), (1, "5\n"), (2, "4\n5\n"), (3, "3\n4\n5\n"), (99, "1\n2\n3\n4\n5\n")],
)
async def test_tail(tmp_path: Path, tail: int, expected: str) -> None:
    write(tmp_path, current_2="1\n2\n", current_1="3\n", current="4\n5\n")
    assert await everything(tmp_path, tail=tail) == expected


async def test_no_log_at_all(tmp_path: Path) -> None:
    write(tmp_path)
    assert await everything(tmp_path) == ""
    assert await everything(tmp_path, tail=3) == ""


@given(
    texts=st.lists(st.lists(st.text("ab", max_size=5), max_size=6), min_size=1, max_size=3),
    tail=st.integers(0, 20),
)
def test_tail_equals_the_obvious(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]], tail: int
) -> None:
    directory = tmp_path_factory.mktemp("logs")
    files = []
    for number, lines in enumerate(texts):
        path = directory / str(number)
        path.write_text("".join(f"{line}\n" for line in lines))
        files.append(os.open(path, os.O_RDONLY))
    _seek_to_tail(files, tail)
    found = b"".join(os.read(fd, 1 << 16) for fd in files).decode()
    for fd in files:
        os.close(fd)
    lines = [line for text in texts for line in text]
    assert found == "".join(f"{line}\n" for line in (lines[-tail:] if tail else []))


async def test_follow_sees_lines_and_rotations_and_ends_with_the_instance(tmp_path: Path) -> None:
    write(tmp_path, current="1\n")
    followed = record(State.RUNNING)
    stream = read_log(followed, str(tmp_path), follow=True)
    seen = b""

    async def until(text: bytes) -> None:
        nonlocal seen
        while seen != text:
            seen += await anext(stream)

    logs = tmp_path / "logs"
    async with asyncio.timeout(10):
        await until(b"1\n")
        with (logs / "current").open("a") as file:
            file.write("2\n")
            file.flush()
            await until(b"1\n2\n")
            file.write("3\n")
            file.flush()
            os.replace(logs / "current", logs / "current.1")
            (logs / "current").write_text("4\n")
        await until(b"1\n2\n3\n4\n")
        with (logs / "current").open("a") as file:
            file.write("last\n")
        followed.change(state=State.STOPPED)
        await until(b"1\n2\n3\n4\nlast\n")
        assert await anext(stream, b"end") == b"end"


async def test_a_follower_that_leaves_takes_its_watch_along(tmp_path: Path) -> None:
    write(tmp_path, current="1\n")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        stream = read_log(record(State.RUNNING), str(tmp_path), follow=True)
        assert await anext(stream) == b"1\n"
        await stream.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_container_has_no_console(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        await anext(read_console(record(), str(tmp_path)))
