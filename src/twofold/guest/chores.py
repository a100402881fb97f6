"""What a child of the agent does for the host in the instance's root: files in and out, errands.

Their modules are imported only when they are wanted, from the initrd, which lies out of sight
beneath the root: ``initrd_fd`` leads back there.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _step_out(initrd_fd: int) -> Callable[[], None]:
    """Back to the initrd, for modules that booting can do without. Call what is returned to be in
    the instance's root again."""
    new_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(initrd_fd)
    os.chroot(".")

    def step_in() -> None:
        os.fchdir(new_root)
        os.chroot(".")

    return step_in


def errand(initrd_fd: int, request: dict[str, Any]) -> None:
    """Something small that the host wants to know or to have done."""
    step_in = _step_out(initrd_fd)
    from twofold.guest import errand, freeze
    from twofold.guest.jsontext import dumps

    what, words = str(request.get("what")), dict(request.get("words") or {})
    if what == "grow":
        from twofold.guest import growing
    if what == "plug":
        from twofold.guest import plugging
    step_in()
    if what == "freeze":
        freeze.hold(initrd_fd, float(words["timeout_s"]))
        return
    if what == "grow":
        said = growing.run(words)
    elif what == "plug":
        said = plugging.run(initrd_fd, words)
    else:
        said = errand.run(what, words)
    data = memoryview(dumps(said))
    while data:
        data = data[os.write(1, data) :]


def archive(initrd_fd: int, direction: str, path: str) -> None:
    """Carry a tar stream."""
    step_in = _step_out(initrd_fd)
    from twofold.guest.archive import tar_in, tar_out  # 100 ms: tarfile

    step_in()
    if direction == "out":
        tar_out(path, 1)
    else:
        tar_in(path, 0)
