"""A guest's screen, keyboard and mouse, through QEMU's control socket.

QEMU is not trusted: a picture is bounded, checked to be one, and handed on unread. Keys go one
chord at a time. A PS/2 keyboard remembers sixteen bytes and loses the rest, and a guest under
emulation may be slow; so each chord waits until the guest has fetched the one before, which is
seen from the interrupts that its bytes raise. Where that cannot be seen (KVM, another keyboard, a
guest that polls) keys go at a fixed, slower pace. The control socket serves one at a time: it is
given back every half a second.
"""

import asyncio
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qemu.qmp import ExecuteError, QMPClient

from twofold.errors import GuestFailed, InvalidInput, TimedOut
from twofold.hypervisor import keyboard, qmp

PICTURE_LIMIT_BYTES = 64 << 20
_SIDE_LIMIT = 16384  # pixels
_FDSET = 71
_PNG = b"\x89PNG\r\n\x1a\n"
_TURN_S = 0.5
_SHORT_DELAY_S = 0.1  # nobody minds waiting so long for the control socket
# A guest that has fetched no key for so long does not read its keyboard, or not as we can see.
_FIRST_FETCH_S = 3.0
_FETCH_S = 15.0
_LOOK_AGAIN_S = 0.003
_BLIND_DELAY_S = 0.05
_KEYBOARD_LINE, _INTERRUPTS = "1:", "isa-i8259"
_CLICK_S = 0.06
_AXIS_LIMIT = 0x7FFF  # of an absolute pointer
_STEP_LIMIT = 100  # a PS/2 mouse reports at most 127 at a time
_BUTTONS = {"left": ("left",), "right": ("right",), "middle": ("middle",)}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, with its size in pixels."""

    data: bytes
    width: int
    height: int


async def picture(socket_path: str) -> Picture:
    """The screen as it is now. Raises GuestFailed when QEMU gives no proper picture."""
    file = os.memfd_create("twofold-screen", os.MFD_CLOEXEC)
    try:
        # QEMU asks for one that is write-only. Its pages count as QEMU's memory, not as ours.
        writable = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            async with qmp.session(socket_path) as client:
                client.send_fd_scm(writable)
                await client.execute("add-fd", {"fdset-id": _FDSET})
                words = {"filename": f"/dev/fdset/{_FDSET}", "format": "png"}
                try:
                    await client.execute("screendump", words)
                finally:
                    await client.execute("remove-fd", {"fdset-id": _FDSET})
        finally:
            os.close(writable)
        return _checked(file)
    finally:
        os.close(file)


def _checked(file: int) -> Picture:
    size = os.fstat(file).st_size
    if size > PICTURE_LIMIT_BYTES:
        raise GuestFailed(f"QEMU made a picture of more than {PICTURE_LIMIT_BYTES >> 20} MiB")
    data = os.pread(file, size, 0)
    if len(data) < 33 or not data.startswith(_PNG) or data[12:16] != b"IHDR":
        raise GuestFailed(f"QEMU made no picture of the screen ({size} bytes)", hint="try again")
    width, height = struct.unpack(">II", data[16:24])
    if not (0 < width <= _SIDE_LIMIT and 0 < height <= _SIDE_LIMIT):
        raise GuestFailed(f"QEMU made a picture of {width} by {height} pixels")
    return Picture(data=data, width=width, height=height)


async def press(socket_path: str, chords: Sequence[keyboard.Chord], *, delay_s: float) -> bool:
    """Press and release each chord, ``delay_s`` apart. True: the guest was seen to fetch them.

    QEMU's control socket is let go every now and then, and for as long as a longer delay takes.
    Raises TimedOut when a guest that did fetch keys stops doing so.
    """
    loop = asyncio.get_running_loop()
    done, seen, delay = 0, True, 0.0
    while done < len(chords):
        async with qmp.session(socket_path, timeout_s=_FETCH_S + 10) as client:
            if done == 0:
                seen = not await _is_kvm(client)
            end = loop.time() + _TURN_S
            while loop.time() < end:
                chord = chords[done]
                before = await _fetched(client) if seen else 0
                await client.execute("input-send-event", {"events": _strokes(chord)})
                if seen and not await _wait(client, before + keyboard.scan_codes(chord), done == 0):
                    if done:
                        raise TimedOut(
                            f"the guest has stopped taking keys: it took {done} of {len(chords)}",
                            hint="twofold screenshot NAME",
                        )
                    seen = False
                done += 1
                delay = delay_s if seen else max(delay_s, _BLIND_DELAY_S)
                if delay > _SHORT_DELAY_S or done == len(chords):
                    break
                await asyncio.sleep(delay)
        if delay > _SHORT_DELAY_S and done < len(chords):
            await asyncio.sleep(delay)
    return seen


async def _wait(client: QMPClient, wanted: int, first: bool) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (_FIRST_FETCH_S if first else _FETCH_S)
    while await _fetched(client) < wanted:
        if loop.time() > deadline:
            return False
        await asyncio.sleep(_LOOK_AGAIN_S)
    return True


async def _is_kvm(client: QMPClient) -> bool:
    """Its interrupt controller is the kernel's then, and QEMU counts nothing."""
    answer = await client.execute("query-kvm")
    return isinstance(answer, dict) and bool(answer.get("enabled"))


async def _fetched(client: QMPClient) -> int:
    """How many bytes the keyboard has given to the guest, or one more. Interrupts of line 1."""
    try:
        answer = await client.execute("x-query-irq")
    except ExecuteError:
        return 0  # unstable, says QEMU: without it nothing is confirmed
    text = str(answer.get("human-readable-text")) if isinstance(answer, dict) else ""
    _, _, counts = text.partition(_INTERRUPTS)
    for line in counts.splitlines()[1:]:
        words = line.split()
        if words[:1] == [_KEYBOARD_LINE] and len(words) == 2 and words[1].isdecimal():
            return int(words[1])
    return 0


def _strokes(chord: keyboard.Chord) -> list[dict[str, Any]]:
    """In one command, so that no key stays down should we end in the middle."""
    downs = [(code, True) for code in chord]
    ups = [(code, False) for code in reversed(chord)]
    return [
        {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": code}}}
        for code, down in downs + ups
    ]


async def point(socket_path: str, at: tuple[int, int] | None, click: str | None) -> bool:
    """Move the pointer and click. True: ``at`` was a place on the screen, in pixels, for the guest
    has a tablet. False: it has a mouse, which was moved by so many steps from where it was.

    Raises InvalidInput for a place that is not on the screen.
    """
    size = (0, 0)
    async with qmp.session(socket_path) as client:
        absolute = await _has_tablet(client)
    if absolute and at is not None:
        screen = await picture(socket_path)
        size = (screen.width, screen.height)
    moves = _moves(at, size, absolute=absolute) if at is not None else []
    async with qmp.session(socket_path) as client:
        for events in moves:
            await client.execute("input-send-event", {"events": events})
            await asyncio.sleep(_CLICK_S / 4)
        for button in _BUTTONS.get(click or "", ("left", "left") if click == "double" else ()):
            for down in (True, False):
                event = {"type": "btn", "data": {"down": down, "button": button}}
                await client.execute("input-send-event", {"events": [event]})
                await asyncio.sleep(_CLICK_S)
    return absolute


async def _has_tablet(client: QMPClient) -> bool:
    mice = await client.execute("query-mice")
    found = [mouse for mouse in mice if isinstance(mouse, dict)] if isinstance(mice, list) else []
    return any(bool(mouse.get("absolute")) for mouse in found if mouse.get("current"))


def _moves(at: tuple[int, int], size: tuple[int, int], *, absolute: bool) -> list[list[Any]]:
    if absolute:
        for place, side in zip(at, size, strict=True):
            if not 0 <= place < side:
                raise InvalidInput(
                    f"{at[0]},{at[1]} is not on the screen of {size[0]} by {size[1]} pixels",
                    hint=f"--mouse {size[0] // 2},{size[1] // 2}",
                )
        scaled = [round(p * _AXIS_LIMIT / max(s - 1, 1)) for p, s in zip(at, size, strict=True)]
        return [[_axis("abs", name, value) for name, value in zip("xy", scaled, strict=True)]]
    moves, left = [], list(at)
    while any(left):
        step = [max(-_STEP_LIMIT, min(_STEP_LIMIT, value)) for value in left]
        left = [value - part for value, part in zip(left, step, strict=True)]
        moves.append([_axis("rel", name, part) for name, part in zip("xy", step, strict=True)])
    return moves


def _axis(kind: str, axis: str, value: int) -> dict[str, Any]:
    return {"type": kind, "data": {"axis": axis, "value": value}}
