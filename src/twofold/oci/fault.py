"""Places where a test can have the runtime killed, to see that nothing it leaves is lost.

``TWOFOLD_OCI_FAULT=NAME`` kills the process that comes to the step NAME with SIGKILL, as the
out-of-memory killer would. Whatever the step, ``twofold-oci delete --force ID`` then removes all.
"""

import os

STEPS = (
    "create-directory",  # the state directory exists, empty
    "create-record",  # the record says creating and names the control groups
    "create-cgroup",  # control groups exist, without limits
    "create-cloned",  # the first process exists, nobody has written down its pid
    "create-recorded",  # its pid is in the record
    "create-maps",  # its ids are mapped, it builds its root
    "create-mounted",  # its mounts are made, createRuntime hooks are next
    "create-limits",  # limits are set
    "create-built",  # it waits in its root
    "create-created",  # the record says created, the pid file is not written
    "start-asked",  # the first process was told to go on
    "start-going",  # the program runs, the record still says created
    "start-running",  # the record says running, poststart hooks are next
    "exec-cloned",  # the process that joined exists
    "delete-killed",  # all processes are dead
    "delete-cgroup",  # the control groups are gone
    "delete-record",  # the directory is gone, poststop hooks are next
)

_WANTED = os.environ.get("TWOFOLD_OCI_FAULT", "")


def point(name: str) -> None:
    """A named step. Costs a comparison of two strings."""
    if name == _WANTED:
        os.kill(os.getpid(), 9)
