"""What several checks share: the root, the distribution, and the results of the trials.

A trial is a child process (``trial.py``), because only a process of its own can enter namespaces;
the daemon itself never forks without exec. All start at once, each is asked when needed.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from twofold.daemon.doctor.fact import family, install, parse_os_release
from twofold.model.paths import Paths

# Where programs are looked for: a daemon started by hand may have a poorer PATH.
PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRIALS = ("namespaces", "mounts", "links")


class Trial:
    """One child. Its answer is a dictionary of name → "" for success, or the reason why not."""

    def __init__(self, arguments: list[str], *, deadline: float) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._answer: dict[str, str] | None = None
        self._late = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "twofold.daemon.doctor.trial", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def answer(self, name: str) -> str:
        """ "" when ``name`` worked, else why not. Waits for the child; raises TimeoutError, for
        what was not seen in time is not known to be missing."""
        with self._lock:
            if self._late:
                raise TimeoutError
            if self._answer is None:
                self._answer = self._wait()
        return self._answer.get(name, self._answer.get("*", "the trial said nothing about it"))

    def _wait(self) -> dict[str, str]:
        try:
            output, errors = self._process.communicate(
                timeout=max(0.05, self._deadline - time.monotonic())
            )
        except subprocess.TimeoutExpired:
            self._late = True
            self.stop()
            raise TimeoutError from None
        try:
            answer: dict[str, str] = json.loads(output)
        except ValueError:
            last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            return {"*": f"the trial failed: {last[0]}"}
        return answer

    def stop(self) -> None:
        """Kill what is left of it; a waiting ``answer`` ends as well."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


class Survey:
    def __init__(self, paths: Paths, *, deadline: float) -> None:
        self.paths = paths
        self.deadline = deadline
        self.os_release = parse_os_release(read("/etc/os-release"))
        self.family = family(self.os_release)
        # On the root's own file system: what works on another one means nothing.
        self._scratch = tempfile.mkdtemp(prefix=".doctor-", dir=existing_parent(paths.root))
        self._trials = {
            name: Trial([name, self._scratch, paths.bridge], deadline=deadline) for name in _TRIALS
        }

    def trial(self, kind: str, name: str) -> str:
        return self._trials[kind].answer(name)

    def install(self, package: str) -> str:
        return install(self.family, package)

    def remaining_s(self) -> float:
        return max(0.05, self.deadline - time.monotonic())

    def close(self) -> None:
        for trial in self._trials.values():
            trial.stop()
        # Their mounts were in namespaces that ended with them: plain directories are left.
        shutil.rmtree(self._scratch, ignore_errors=True)


def existing_parent(path: str) -> str:
    """The path itself, or the nearest directory above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def read(path: str) -> str:
    """The text of a small file, ``""`` when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def program(name: str) -> str | None:
    return shutil.which(name, path=PROGRAM_PATH)


def said(argv: list[str], *, timeout_s: float) -> str:
    """The first line a program prints, ``""`` when it fails or takes too long."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else ""


def readable(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"
