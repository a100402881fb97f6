"""Work through ``qemu-guest-agent`` that looks to the keeper like any session: exec, copy, errand.

A piece of work is a generator (``monitor_agent_scripts``) that yields the steps below and is given
what comes of each; its return value is the exit code. It runs in the monitor's loop. A step under
way when the client leaves is awaited, so that the script can tidy up inside.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from twofold.errors import RuntimeFailed, TwofoldError, Unsupported
from twofold.hypervisor.monitor_agent_port import NAME, AgentPort, Ask, RefusedError
from twofold.hypervisor.monitor_session import Post, Session, Watcher
from twofold.hypervisor.monitor_stream import Intake, Outlet
from twofold.record import dataclass

WINDOW_BYTES = 4 << 20


class Opened:
    """It has begun: the client is told. Given None."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Given a signal's number as soon as one is asked for, else 0 when the time is over."""

    seconds: float


class Take:
    """Given the next bytes of the client's input, b"" at its end."""


@dataclass(frozen=True, kw_only=True)
class Put:
    """Output for the client. Given True; False when nobody reads any more."""

    channel: int
    data: bytes


class LeftError(Exception):
    """Thrown into a script whose client has gone."""


Step = Ask | Opened | Wait | Take | Put
Script = Generator[Step, Any, int]


class Work(Session):
    """One script and its client. ``ended`` is called once, when nothing of it is left."""

    def __init__(
        self,
        script: Script,
        port: AgentPort,
        stdio: tuple[int, int, int],
        *,
        watcher: Watcher,
        post: Post,
        over: Callable[["Work"], None],
    ) -> None:
        self._script, self._port, self._watcher = script, port, watcher
        self._post, self._over = post, over
        self.deadline = math.inf
        self._step: Step | None = None
        self._signals: deque[int] = deque(maxlen=16)
        self._input: deque[bytes] = deque()
        self._left = self._reported = False
        self._result: tuple[int, TwofoldError | None] | None = None
        self._gone = [False, False, False]
        self._room = [WINDOW_BYTES] * 3
        self._intake = Intake(stdio[0], self._emit, credit=WINDOW_BYTES) if stdio[0] >= 0 else None
        self._outlets = {channel: self._outlet(channel, stdio[channel]) for channel in (1, 2)}

    def start(self) -> None:
        self._go(lambda: next(self._script))

    # -- its streams (threads) --------------------------------------------------------------

    def _outlet(self, channel: int, fd: int) -> Outlet:
        def wrote(count: int) -> None:
            self._post(lambda: self._wrote(channel, count))

        def gone() -> None:
            self._gone[channel] = True

        return Outlet(
            fd,
            window=WINDOW_BYTES,
            wrote=wrote,
            gone=gone,
            done=lambda: self._post(self._maybe_report),
        )

    def _wrote(self, channel: int, count: int) -> None:
        self._room[channel] += count
        if isinstance(self._step, Put) and self._step.channel == channel:
            self._put(self._step)

    def _emit(self, data: bytes) -> None:
        self._post(lambda: self._received(data))

    def _received(self, data: bytes) -> None:
        self._input.append(data)
        if isinstance(self._step, Take):
            self._take()

    # -- its steps --------------------------------------------------------------------------

    def _go(self, resume: Callable[[], Step]) -> None:
        self._step, self.deadline = None, math.inf
        try:
            step = resume()
        except StopIteration as end:
            self._finish((int(end.value), None))
        except LeftError:
            self._finish((129, None))
        except RefusedError as error:
            self._finish((125, refused(error.sentence)))
        except TwofoldError as error:
            self._finish((125, error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            sentence = f"{NAME} answered with what makes no sense ({type(error).__name__})"
            self._finish((125, RuntimeFailed(sentence, hint="twofold console NAME")))
        else:
            self._begin(step)

    def _begin(self, step: Step) -> None:
        if self._left and not isinstance(step, Ask):
            self._left = False  # once: what the script does after it is its tidying up
            self._go(lambda: self._script.throw(LeftError()))
            return
        self._step = step
        if isinstance(step, Ask):
            self._port.ask(step, self._give, self._fail)
        elif isinstance(step, Opened):
            self._watcher.started(self)
            if self._intake:
                self._intake.start()
            self._give(None)
        elif isinstance(step, Wait):
            if self._signals:
                self._give(self._signals.popleft())
            else:
                self.deadline = time.monotonic() + step.seconds
        elif isinstance(step, Take):
            self._take()
        else:
            self._put(step)

    def _give(self, value: Any) -> None:
        # By way of the loop: an answer that comes at once must not nest one step in another.
        self._step = None
        self._post(lambda: self._go(lambda: self._script.send(value)))

    def _fail(self, error: TwofoldError | RefusedError) -> None:
        self._step = None
        self._post(lambda: self._go(lambda: self._script.throw(error)))

    def _take(self) -> None:
        if self._intake is None:
            self._give(b"")
        elif self._input:
            data = self._input.popleft()
            if data:
                self._intake.grant(len(data))
            self._give(data)

    def _put(self, step: Put) -> None:
        if self._gone[step.channel]:
            self._give(False)
        elif len(step.data) <= self._room[step.channel]:
            self._room[step.channel] -= len(step.data)
            self._outlets[step.channel].put(step.data)
            self._give(True)

    def check(self, now: float) -> None:
        if now >= self.deadline and isinstance(self._step, Wait):
            self._give(0)
            self.deadline = math.inf

    # -- the client -------------------------------------------------------------------------

    def signal(self, number: int, *, group: bool = False) -> None:
        self._signals.append(number)
        if isinstance(self._step, Wait):
            self._give(self._signals.popleft())
            self.deadline = math.inf

    def resize(self, rows: int, cols: int) -> None:
        """There is no terminal."""

    def hang_up(self) -> None:
        self._leave()
        for outlet in self._outlets.values():
            outlet.abandon()

    def _leave(self) -> None:
        if self._result is not None or self._left:
            return
        if self._step is None or isinstance(self._step, Ask):
            self._left = True
        else:
            self._step = None
            self._post(lambda: self._go(lambda: self._script.throw(LeftError())))

    # -- its end ----------------------------------------------------------------------------

    def _finish(self, result: tuple[int, TwofoldError | None]) -> None:
        self._result = result
        if self._intake:
            self._intake.stop()
        for outlet in self._outlets.values():
            outlet.finish()
        self._maybe_report()

    def _maybe_report(self) -> None:
        if self._result is None or self._reported:
            return
        if not all(outlet.finished for outlet in self._outlets.values()):
            return
        self._reported = True
        self._over(self)
        code, error = self._result
        if error is None:
            self._watcher.ended(self, code)
        else:
            self._watcher.failed(self, error)


def refused(sentence: str) -> TwofoldError:
    """What the agent's own word means to a user."""
    if "disabled" in sentence or ("not found" in sentence and "guest-" in sentence):
        return Unsupported(
            f"{NAME} in the guest does not do that: {sentence}",
            hint=f"allow it in the configuration of {NAME} (block-rpcs, allow-rpcs), restart it",
        )
    return RuntimeFailed(f"{NAME} in the guest refused: {sentence}", hint="twofold console NAME")


def line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
