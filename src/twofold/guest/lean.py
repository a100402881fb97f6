"""The two C modules whose Python wrappers the agent cannot afford at boot.

``signal`` builds enumerations (and loads ``enum``, ``functools``, ``types``), ``collections``
defines much besides the deque: together 0.1 s of an emulated boot.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections import deque
else:
    import _signal as signal
    from _collections import deque

__all__ = ["deque", "signal"]
