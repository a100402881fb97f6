"""One call of ``twofold-oci``: the global options, and where errors and warnings go."""

from __future__ import annotations

import os
import sys
import time

from twofold.errors import InvalidInput, TwofoldError, Unsupported
from twofold.guest import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values

_DEFAULT_ROOT = "/run/twofold-oci"


class Session:
    """Global options. Until ``take`` was called everything goes to stderr only."""

    def __init__(self) -> None:
        self.root = _DEFAULT_ROOT
        self.systemd_cgroup = False
        self.rootless = os.geteuid() != 0
        self.debug = False
        self.failure_code = 1  # of the whole process, when the command fails
        self._log_path = ""
        self._json = False

    def take(self, values: Values) -> None:
        """Check and keep the global options; the log first, so that it has what follows."""
        self._log_path = values.text("log")
        form = values.text("log-format")
        if form not in ("text", "json"):
            raise InvalidInput(f"--log-format is {form!r}", hint="use text or json")
        self._json = form == "json"
        self.debug = values.flag("debug")
        self.systemd_cgroup = values.flag("systemd-cgroup")
        rootless = values.text("rootless")
        if rootless not in ("true", "false", "auto"):
            raise InvalidInput(f"--rootless is {rootless!r}", hint="use true, false or auto")
        if rootless != "auto":
            self.rootless = rootless == "true"
        if values.given("criu"):
            raise Unsupported(
                f"--criu {values.text('criu')!r}: checkpoints are not supported by this runtime",
                hint="leave the option out",
            )
        self.root = values.text("root") or self._default_root()
        if "\0" in self.root:
            raise InvalidInput(f"--root is {self.root!r}: a NUL byte cannot be in a path")

    def _default_root(self) -> str:
        own = os.environ.get("XDG_RUNTIME_DIR", "")
        if os.geteuid() != 0 and own:
            return f"{own}/twofold-oci"
        return _DEFAULT_ROOT

    def report(self, error: TwofoldError) -> None:
        """Tell the failure that ends this call."""
        text = f"{error.message} ({error.hint})" if error.hint else error.message
        self._write_log("error", text)
        _to_stderr(f"twofold-oci: {text}\n")

    def warn(self, text: str) -> None:
        self._write_log("warning", text)
        _to_stderr(f"twofold-oci: warning: {text}\n")

    def trace(self, text: str) -> None:
        """A step, when ``--debug`` asked for them."""
        if self.debug:
            self._write_log("debug", text)
            if not self._log_path:
                _to_stderr(f"twofold-oci: {text}\n")

    def _write_log(self, level: str, text: str) -> None:
        if not self._log_path:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        if self._json:
            line = jsontext.dumps({"level": level, "msg": text, "time": stamp}) + b"\n"
        else:
            quoted = jsontext.dumps(text).decode()
            line = f'time="{stamp}" level={level} msg={quoted}\n'.encode()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        try:
            fd = os.open(self._log_path, flags, 0o644)
        except OSError as error:
            _to_stderr(f"twofold-oci: cannot write the log {self._log_path!r}: {error.strerror}\n")
            self._log_path = ""
            return
        try:
            os.write(fd, line)
        finally:
            os.close(fd)


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # the caller closed it; the log has the text
