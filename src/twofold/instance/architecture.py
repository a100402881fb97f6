"""Which processor an instance wants, and whether it can have it here. Pure.

A container runs on this host's processor. A virtual machine may have another one that QEMU
emulates; its image then has that processor before its name. What cannot be is refused by name:
inside it would end in "exec format error".
"""

from collections.abc import Callable

from twofold.errors import InvalidInput, NotFound, Unsupported
from twofold.image import names
from twofold.image.manifest import host_architecture, spelled
from twofold.model.image import Image, ImageKind
from twofold.model.instance import InstanceSpec, Isolation

# What a host emulates besides its own: machines of our kernel are made of PCs and of these.
EMULATED = {"amd64": ("arm64",)}
_WHY_NOT = {
    "riscv64": "; kernel, agent and images of such machines come from Debian 12, which has no "
    "release for it"
}


def check_wanted(wanted: str | None) -> None:
    """``--arch``. Raises Unsupported for what this host neither is nor emulates."""
    own = host_architecture()
    if wanted is None or spelled(wanted) in (own, *_emulated()):
        return
    raise Unsupported(
        f"architecture {wanted!r}: this host is {own}, and Twofold does not emulate that one"
        f"{instead(wanted)}",
        hint=f"--arch {_emulated()[0]}, or leave it out"
        if _emulated()
        else "leave --arch out, or use a host of that architecture",
    )


def foreign(wanted: str | None) -> str | None:
    """The processor that has to be emulated; None where it is this host's own."""
    if wanted is None or spelled(wanted) == host_architecture():
        return None
    return spelled(wanted)


def image_name(name: str, wanted: str | None, find: Callable[[str], Image]) -> str:
    """Which image ``name`` stands for with ``--arch``: the one of that name where it is for that
    processor, else the one that has the processor before its name. Raises Unsupported."""
    other = foreign(wanted)
    if other is None or name.startswith("/"):
        return name
    try:
        found = find(name)
    except NotFound:
        return names.for_architecture(name, other)
    if found.architecture == other or found.kind is not ImageKind.ROOT:
        return name
    instead = names.for_architecture(name, other)
    try:
        find(instead)
    except NotFound:
        if not names.is_builtin(instead):
            raise Unsupported(
                f"image {name!r} is for {found.architecture}, not for {other}",
                hint=f"twofold image import FILE {instead}",
            ) from None
    return instead


def build_name(name: str, wanted: str | None) -> tuple[str, str | None]:
    """(what an image that is built is called, its foreign processor or None). Raises
    InvalidInput where name and wish contradict each other."""
    stated = names.architecture_of(names.normalise(name))
    if stated == host_architecture():  # arm64/debian, on an arm64 host
        stated = None
    if stated and wanted and stated != spelled(wanted):
        raise InvalidInput(
            f"the name {name!r} stands for {stated}, not for {spelled(wanted)}",
            hint="leave --arch out",
        )
    other = stated or foreign(wanted)
    return (names.for_architecture(name, other), other) if other else (name, None)


def settle(spec: InstanceSpec, image: Image) -> InstanceSpec:
    """``spec`` with the processor of its image, a root file system. Raises Unsupported,
    InvalidInput."""
    own = host_architecture()
    its = image.architecture if image.architecture not in ("unknown", "") else own
    if spec.arch is not None and its != spelled(spec.arch):
        raise Unsupported(
            f"image {spec.image!r} is for {its}, not for {spec.arch}",
            hint=f"--arch {its}",
        )
    if its == own:
        return spec
    if its not in _emulated():
        raise Unsupported(
            f"image {spec.image!r} is for {its}; this host is {own}, and Twofold does not emulate "
            f"that one{instead(its)}",
            hint=f"twofold image import one for {own}",
        )
    if spec.isolation is Isolation.CONTAINER:
        raise Unsupported(
            f"image {spec.image!r} is for {its}; a container runs on this host's own processor, "
            f"which is {own}",
            hint="give it an emulated machine: --vm",
        )
    if spec.nested:
        raise InvalidInput(
            f"--nested: a machine whose {its} processor is emulated has no virtualisation of its "
            "own",
            hint="leave --nested out",
        )
    return spec.model_copy(update={"arch": its})


def _emulated() -> tuple[str, ...]:
    return EMULATED.get(host_architecture(), ())


def is_emulated(other: str) -> bool:
    return other in _emulated()


def instead(other: str) -> str:
    """What may be had, and why ``other`` may not."""
    only = f" (only {', '.join(_emulated())})" if _emulated() else ""
    return f"{only}{_WHY_NOT.get(spelled(other), '')}"
