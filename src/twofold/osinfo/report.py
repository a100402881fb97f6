"""System, Choice and Match as the API shows them. Pure."""

from twofold.model.guest_os import (
    OsChoice,
    OsDetail,
    OsMatch,
    OsProfile,
    OsResources,
    OsSummary,
)
from twofold.osinfo.choice import Choice, choose
from twofold.osinfo.system import Match, Resources, System


def summary(system: System) -> OsSummary:
    return OsSummary(
        id=system.id,
        name=system.name,
        family=system.family,
        release_date=system.release_date,
        eol_date=system.eol_date,
        release_status=system.release_status,
        virtio=system.virtio_in_the_box(),
        origins=list(system.origins),
    )


def detail(system: System) -> OsDetail:
    taken = choose(system)
    said = {kind: (there, fact.words()) for kind, (there, fact) in system.firmware.items()}
    return OsDetail(
        **summary(system).model_dump(),
        uri=system.uri,
        also_called=list(system.also_called),
        version=system.version,
        vendor=system.vendor,
        codename=system.codename,
        upgrades=system.upgrades,
        derives_from=list(system.ancestors),
        drivers={device: fact.words() for device, fact in system.devices.items()},
        addable=list(system.addable),
        firmware={
            kind: f"{'yes' if there else 'no'} ({words})" for kind, (there, words) in said.items()
        },
        minimum=_resources(system.minimum),
        recommended=_resources(system.recommended),
        resources_source=system.resources_from.words() if system.resources_from else None,
        cloud_init=system.cloud_init,
        hardware=taken.hardware,
        hardware_reason=taken.reasons["hardware"],
        profiles={name: profile(choose(system, hardware=name)) for name in ("emulated", "virtio")},
    )


def profile(choice: Choice) -> OsProfile:
    """All that was chosen, but for what the wish itself said."""
    found = {}
    for name, reason in choice.reasons.items():
        if name != "hardware":
            value = getattr(choice, name)
            value = list(value) if isinstance(value, tuple) else value
            found[name] = OsChoice(value=value, reason=reason)
    return OsProfile(choices=found, warnings=list(choice.warnings))


def match(found: Match) -> OsMatch:
    return OsMatch(
        id=found.system.id,
        name=found.system.name,
        rule=found.rule,
        certain=found.certain,
        others=list(found.others),
        architecture=found.architecture,
        live=found.live,
        installer_reboots=found.installer_reboots,
    )


def _resources(amounts: Resources) -> OsResources:
    return OsResources(
        vcpus=amounts.vcpus, memory_bytes=amounts.memory_bytes, disk_bytes=amounts.disk_bytes
    )
