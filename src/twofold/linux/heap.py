"""Give memory that the C library keeps for later back to the kernel."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """What imports needed in passing. Does nothing where the C library is not glibc."""
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if function is not None:
        function(0)
