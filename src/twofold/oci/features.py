"""What this runtime can do, said to the letter: ``--version`` and the features document.

What depends on the host (seccomp's flags, security modules) is asked of the host.
"""

from __future__ import annotations

from twofold import __version__
from twofold.oci.state import SPEC_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def version_text() -> str:
    return f"twofold-oci version {__version__}\nspec: {SPEC_VERSION}\n"


def document() -> dict[str, Any]:
    """As features.md and features-linux.md of the specification have it."""
    from twofold.oci import hooks

    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(hooks.KINDS),
        "mountOptions": _mount_options(),
        "linux": {
            "namespaces": sorted(_namespaces()),
            "capabilities": _capabilities(),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": False,
                "rdma": True,
            },
            "seccomp": _seccomp(),
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": False},
        },
        "annotations": {"org.opencontainers.runtime-spec.version": SPEC_VERSION},
        "potentiallyUnsafeConfigAnnotations": [],
    }


def _namespaces() -> list[str]:
    import os

    from twofold.runtime.namespaces import FILES

    return [kind for kind, file in FILES.items() if os.path.exists(f"/proc/self/ns/{file}")]


def _capabilities() -> list[str]:
    from twofold.linux import capabilities

    last = capabilities.last_capability()
    return [f"CAP_{name}" for name in capabilities.NAMES[: last + 1]]


def _mount_options() -> list[str]:
    from twofold.runtime import mount_plan

    return sorted(mount_plan.known_options())


def _seccomp() -> dict[str, Any]:
    from twofold.linux import seccomp as kernel
    from twofold.oci import seccomp

    return {
        "enabled": True,
        "actions": list(seccomp.ACTIONS),
        "operators": list(seccomp.OPERATORS),
        "archs": list(seccomp.ARCHITECTURES),
        "knownFlags": list(kernel.FLAGS),
        "supportedFlags": kernel.supported_flags(),
    }
