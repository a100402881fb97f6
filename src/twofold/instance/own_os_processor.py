"""Which processor a machine with an operating system of its own gets, and which rule says so.

What the user says goes first; then what an image was said to be when it was imported, the boot
loaders for UEFI on it, and what osinfo knows of the medium. Where nothing tells it is a PC. Reads
the database of systems: call it in a thread.
"""

from twofold import osinfo
from twofold.errors import InvalidInput, Unsupported
from twofold.image.manifest import host_architecture, spelled
from twofold.instance import architecture
from twofold.model.image import Image, ImageKind
from twofold.model.instance import InstanceSpec

# In osinfo-db's words; those of a PC, and nothing, say nothing against one.
_OSINFO = {"aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
PC = "amd64"


def of_image(image: Image) -> tuple[str, str]:
    """(processor, why); both "" where nothing on it tells."""
    facts = image.disk
    if facts is None:
        return "", ""
    if facts.stated_processor:
        return facts.stated_processor, "said when the image was imported"
    if PC in facts.processors:
        return PC, _loaders(facts.processors)
    if len(facts.processors) == 1:
        return facts.processors[0], _loaders(facts.processors)
    match = osinfo.identify(facts)
    its = _OSINFO.get(match.architecture or "", "") if match else ""
    return (its, match.rule) if match and its else ("", "")


def _loaders(processors: list[str]) -> str:
    return f"it has UEFI boot loaders for {' and '.join(processors)}"


def settle(spec: InstanceSpec, image: Image) -> InstanceSpec:
    """``spec`` with the processor of the machine. Raises Unsupported, InvalidInput."""
    its, why = of_image(image)
    wanted = spelled(spec.arch) if spec.arch else its
    if wanted in ("", PC, host_architecture()):
        return spec
    if not architecture.is_emulated(wanted):
        raise Unsupported(
            f"image {spec.image!r} is for {wanted} ({why}); this host is {host_architecture()}, "
            f"and Twofold does not emulate that one{architecture.instead(wanted)}",
            hint="should it be for this host nevertheless: --arch amd64",
        )
    if spec.nested:
        raise InvalidInput(
            f"--nested: a machine whose {wanted} processor is emulated has no virtualisation of "
            "its own",
            hint="leave --nested out",
        )
    if image.kind is ImageKind.FLOPPY:
        check_floppy(wanted, hint="leave --arch out")
    if spec.floppy is not None:
        check_floppy(wanted, hint="leave --floppy out")
    return spec.model_copy(update={"arch": wanted})


def check_floppy(processor: str | None, *, hint: str) -> None:
    """Raises Unsupported where there is no drive for one."""
    if processor and spelled(processor) != PC:
        raise Unsupported(
            f"a machine with an {spelled(processor)} processor has no floppy drive", hint=hint
        )


def reason(spec: InstanceSpec, image: Image) -> tuple[str, str]:
    """(why a machine has the processor it has, what speaks against it or "")."""
    its, why = of_image(image)
    has = spelled(spec.arch) if spec.arch else PC
    if its == has:
        return f"{has}: {why}", ""
    if its:
        doubt = f"image {spec.image!r} is for {its} ({why}); this machine has an {has} processor"
        return f"{has}: asked for", doubt
    if spec.arch:
        return f"{has}: asked for", ""
    return f"{has}: nothing on the image tells, and this is what this host runs", ""
