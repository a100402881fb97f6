"""The kernel's packet filter, through libnftables in process (about 1 ms a transaction).

``run`` takes commands in nft's own language and applies them all or none; ``listing`` reads back
as JSON. Falls back to the ``nft`` program where the library is missing. Text rather than JSON for
writing: libnftables 1.0 cannot read its own JSON of maps with concatenated values. Callers format
validated addresses, numbers and link names only, never a user's words.

A context is opened per call: its socket belongs to the network namespace of the calling thread.
"""

import ctypes
import ctypes.util
import json
import shutil
import subprocess
import threading
from typing import Any

_OUTPUT_JSON = 1 << 4
_OUTPUT_HANDLE = 1 << 3
_SONAME = "libnftables.so.1"
_PROGRAM_TIMEOUT_S = 20


class NftablesError(Exception):
    """The kernel or the parser refused; the text is nft's own. ``missing``: no such table or set;
    ``exists``: an element or table is already there; ``absent``: neither library nor program."""

    def __init__(self, text: str, *, absent: bool = False) -> None:
        super().__init__(text)
        self.absent = absent
        self.missing = "No such file or directory" in text
        self.exists = "File exists" in text


# libnftables keeps parser state in globals in some releases: one call at a time.
_LOCK = threading.Lock()


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_SONAME)
    except OSError:
        return None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        function = getattr(library, name)
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    return library


_library: ctypes.CDLL | None = None
_loaded = False


def library() -> ctypes.CDLL | None:
    """The loaded library, or None; loaded on first use."""
    global _library, _loaded
    if not _loaded:
        _library, _loaded = _load(), True
    return _library


def run(commands: str) -> None:
    """Apply ``commands`` as one transaction. Raises NftablesError; then nothing was changed."""
    _call(commands, 0)


def listing(command: str) -> list[dict[str, Any]]:
    """The objects that a ``list …`` command shows, without the metainfo entry."""
    text = _call(command, _OUTPUT_JSON | _OUTPUT_HANDLE)
    if not text.strip():
        return []
    objects: list[dict[str, Any]] = json.loads(text)["nftables"]
    return [item for item in objects if "metainfo" not in item]


def _call(commands: str, flags: int) -> str:
    found = library()
    if found is None:
        return _call_program(commands, flags)
    with _LOCK:
        context = found.nft_ctx_new(0)
        if not context:
            raise NftablesError("nft_ctx_new: out of memory")
        try:
            found.nft_ctx_buffer_output(context)
            found.nft_ctx_buffer_error(context)
            found.nft_ctx_output_set_flags(context, flags)
            status = found.nft_run_cmd_from_buffer(context, commands.encode("ascii"))
            if status != 0:
                error = found.nft_ctx_get_error_buffer(context) or b""
                raise NftablesError(error.decode("utf-8", "replace").strip() or "unknown error")
            output: bytes = found.nft_ctx_get_output_buffer(context) or b""
            return output.decode("utf-8", "replace")
        finally:
            # Closing its socket waits until nobody uses what was removed any more: 10 ms.
            threading.Thread(target=_free, args=(found, context), daemon=True).start()


def _free(found: ctypes.CDLL, context: int) -> None:
    with _LOCK:
        found.nft_ctx_free(context)


def _call_program(commands: str, flags: int) -> str:
    program = shutil.which("nft", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise NftablesError(f"neither {_SONAME} nor the program nft was found", absent=True)
    options = ["--json"] if flags & _OUTPUT_JSON else []
    done = subprocess.run(
        [program, *options, "--handle", "--file", "-"],
        input=commands.encode("ascii"),
        capture_output=True,
        timeout=_PROGRAM_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise NftablesError(done.stderr.decode("utf-8", "replace").strip() or "nft failed")
    return done.stdout.decode("utf-8", "replace")
