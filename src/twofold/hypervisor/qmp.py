"""Talk to a running QEMU: pause, resume, power down, quit, status.

Each call is its own short connection, because QEMU serves one client at a time and a daemon that
died while connected must not lock out the next. The peer is not trusted: whoever took over a QEMU
may answer anything or nothing, so every call has a time limit and a size limit. Keeps no state.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from twofold.errors import GuestFailed, IllegalState, TimedOut, TwofoldError, Unavailable

TIMEOUT_S = 10.0
_ANSWER_LIMIT_BYTES = 1 << 20
_DISCONNECT_TIMEOUT_S = 1.0


async def status(socket_path: str) -> str:
    """QEMU's run state in its own word: ``running``, ``paused``, ``shutdown``, ``io-error`` …"""
    answer = await execute(socket_path, "query-status")
    state = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(state, str):
        raise GuestFailed(f"QEMU answered query-status with {_short(answer)}")
    return state


async def pause(socket_path: str) -> None:
    """Stop the virtual CPUs. A machine that is paused already stays so."""
    await execute(socket_path, "stop")


async def resume(socket_path: str) -> None:
    """Let the virtual CPUs run. Raises IllegalState when QEMU cannot (after an error)."""
    await execute(socket_path, "cont")


async def powerdown(socket_path: str) -> None:
    """Press the power button. What the guest does about it is up to the guest."""
    await execute(socket_path, "system_powerdown")


async def quit(socket_path: str) -> None:  # noqa: A001  the word of QMP and of this room
    """End QEMU at once. The answer may be lost in its end: that counts as done."""
    try:
        await execute(socket_path, "quit")
    except Unavailable:
        pass


@asynccontextmanager
async def session(socket_path: str, *, timeout_s: float = TIMEOUT_S) -> AsyncIterator[QMPClient]:
    """Several commands in a row, with nobody else's in between; errors as of ``execute``.

    The time limit is that of the whole block.
    """
    client = QMPClient("twofold", readbuflen=_ANSWER_LIMIT_BYTES)
    client.logger = _SILENT
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(socket_path)
            yield client
    except TimeoutError:
        raise TimedOut(
            f"QEMU did not answer within {timeout_s:.0f} s",
            hint="twofold kill NAME ends a virtual machine that is stuck",
        ) from None
    except ExecuteError as error:
        raise IllegalState(f"QEMU refused a command: {_short(str(error))}") from None
    except (QMPError, RecursionError, AssertionError) as error:  # the library asserts on answers
        raise _translate(socket_path, "a command", error) from None
    finally:
        await _disconnect(client)


async def execute(
    socket_path: str,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """One command and its answer.

    Raises Unavailable (nobody listens, or it hung up), TimedOut, IllegalState (QEMU refuses the
    command in its present state), GuestFailed (an answer that is not QMP).
    """
    client = QMPClient("twofold", readbuflen=_ANSWER_LIMIT_BYTES)
    # Failures are raised from here, once; the library would log each of them as well.
    client.logger = _SILENT
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(socket_path)
            return await client.execute(command, arguments)
    except TimeoutError:
        raise TimedOut(
            f"QEMU did not answer {command!r} within {timeout_s:.0f} s",
            hint="twofold kill NAME ends a virtual machine that is stuck",
        ) from None
    except ExecuteError as error:
        raise IllegalState(f"QEMU refused {command!r}: {_short(str(error))}") from None
    except Exception as error:
        raise _translate(socket_path, command, error) from None
    finally:
        await _disconnect(client)


def _translate(socket_path: str, command: str, error: BaseException) -> TwofoldError:
    """qemu.qmp wraps what went wrong; the innermost cause tells a dead peer from a strange one."""
    cause: BaseException = error
    while cause.__cause__ is not None or isinstance(getattr(cause, "exc", None), BaseException):
        cause = cause.__cause__ or getattr(cause, "exc")  # noqa: B009
    if isinstance(cause, (OSError, EOFError)) or "disconnect" in str(error).lower():
        reason = getattr(cause, "strerror", None) or "it closed the connection"
        return Unavailable(
            f"QEMU is not reachable at {socket_path!r} for {command!r}: {reason}",
            hint="twofold list shows whether the machine still runs",
        )
    return GuestFailed(f"QEMU gave no proper answer to {command!r}: {_short(str(error))}")


async def _disconnect(client: QMPClient) -> None:
    try:
        async with asyncio.timeout(_DISCONNECT_TIMEOUT_S):
            await client.disconnect()
    except Exception:
        pass  # the call has its result; what the peer does now is its affair


def _short(value: object) -> str:
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return text if len(text) <= 200 else f"{text[:200]}…"


_SILENT = logging.getLogger("twofold.hypervisor.qmp.protocol")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
