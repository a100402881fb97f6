"""What the synchronous and the asynchronous SDK share: requests and answers as data. Pure."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from twofold.errors import InvalidInput, TwofoldError, Unavailable, from_dict
from twofold.model.instance import InstanceChange, InstanceSpec, Volume
from twofold.model.paths import Paths

Shape = TypeVar("Shape", bound=BaseModel)
OnEvent = Callable[[dict[str, Any]], None]

BASE = "http://twofold"
NDJSON = {"Accept": "application/x-ndjson"}


@dataclass(frozen=True, kw_only=True)
class Completed:
    """How a command ended and what it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes


def at(*segments: str) -> str:
    """The path of an endpoint. Raises InvalidInput for a name that could lead to another one: httpx
    resolves ``..``, and routes are chosen by the decoded path."""
    for segment in segments[1:]:
        slash = "/" in segment and segments[0] not in ("images", "os")
        if segment in ("", ".", "..") or slash:
            raise InvalidInput(f"{segment[:80]!r} is no name", hint="twofold list --all")
    return "/v1/" + "/".join(quote(segment, safe="") for segment in segments)


def spec_body(
    image: str, command: Sequence[str] | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    words = {"image": image, "command": list(command) if command else None, **fields}
    return _checked(InstanceSpec, words).model_dump(mode="json", exclude_defaults=True)


def change_body(changes: Mapping[str, Any]) -> dict[str, Any]:
    return _checked(InstanceChange, changes).model_dump(mode="json", exclude_unset=True)


def _checked(model: type[Shape], fields: Mapping[str, Any]) -> Shape:
    """Every failure is one of ours. Raises InvalidInput."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or model.__name__
        raise InvalidInput(
            f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r:.80}",
            hint=f"help(twofold.model.instance.{model.__name__})",
        ) from None


def error_of(status: int, body: bytes) -> TwofoldError:
    try:
        return from_dict(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace")
        return TwofoldError(f"the daemon replied {status}: {text}", hint="twofold doctor")


def gone(paths: Paths, error: Exception) -> Unavailable:
    return Unavailable(
        f"the daemon of {paths.root!r} is not reachable: {error}", hint="twofold serve"
    )


def exec_body(
    command: Sequence[str],
    stdin: bytes,
    env: Mapping[str, str] | None,
    workdir: str | None,
    user: str | None,
    timeout_s: float,
) -> dict[str, Any]:
    return {
        "command": list(command),
        "env": [f"{name}={value}" for name, value in (env or {}).items()],
        "workdir": workdir,
        "user": user,
        "capture": True,
        "stdin_base64": base64.b64encode(stdin).decode(),
        "timeout_s": timeout_s,
    }


def detached_body(
    command: Sequence[str],
    env: Mapping[str, str] | None,
    workdir: str | None,
    user: str | None,
) -> dict[str, Any]:
    return {
        "command": list(command),
        "env": [f"{name}={value}" for name, value in (env or {}).items()],
        "workdir": workdir,
        "user": user,
        "detach": True,
    }


def timeout_body(timeout_s: float | None) -> dict[str, Any]:
    """Left out where nobody says, so that a daemon of before knows what to do."""
    return {} if timeout_s is None else {"timeout_s": timeout_s}


def plug_body(volume: Volume | None, disk_bytes: int | None, network: str | None) -> dict[str, Any]:
    shown = volume.model_dump(mode="json") if volume is not None else None
    return {"volume": shown, "disk_bytes": disk_bytes, "network": network}


def unplug_body(volume: str | None, disk: int | None, network: bool, force: bool) -> dict[str, Any]:
    return {"volume": volume, "disk": disk, "network": network, "force": force}


def captured(answer: dict[str, Any]) -> Completed:
    return Completed(
        exit_code=answer["exit_code"],
        stdout=base64.b64decode(answer["stdout_base64"]),
        stderr=base64.b64decode(answer["stderr_base64"]),
    )


def split_log(log: bytes) -> tuple[bytes, bytes]:
    """Log lines (``TIME STREAM F|P CONTENT``) as the bytes that were written."""
    streams: dict[bytes, list[bytes]] = {b"stdout": [], b"stderr": []}
    for line in log.split(b"\n"):
        fields = line.split(b" ", 3)
        if len(fields) == 4 and fields[1] in streams:
            streams[fields[1]].append(fields[3] + (b"\n" if fields[2] == b"F" else b""))
    return b"".join(streams[b"stdout"]), b"".join(streams[b"stderr"])


class Events:
    """Takes an operation's lines; has its result at the end, or raises its error."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event = on_event
        self.ended = False
        self.result: Any = None

    def line(self, text: str) -> None:
        if not text:
            return
        event = json.loads(text)
        if event["type"] == "error":
            raise from_dict(event["error"])
        if event["type"] == "result":
            self.ended, self.result = True, event["result"]
        elif self._on_event is not None:
            self._on_event(event)

    def finish(self) -> Any:
        if not self.ended:
            raise Unavailable("the daemon went away in the middle", hint="twofold list --all")
        return self.result
