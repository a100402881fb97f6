"""What the initrd carries: read by the initrd builder, never by the agent itself.

``/init`` calls ``twofold.guest.agent.main``. The agent finds in the root of the initrd
``/lib/twofold/modules`` (kernel modules to load before the disks are mounted, one path per line, in
order) and, each optional, ``modules.net`` (loaded when there is a network), ``modules.share`` (when
there are volumes), ``modules.nested`` (only in the initrd of a guest that may run virtual machines)
and ``modules.late`` (when the payload has started). The layout is drawn in
docs/contributing/guest-boot.md.
"""

AGENT_MODULE = "twofold.guest.agent"

# archive, errand, growing, plugging and settling are imported when they are asked for; the others
# at start.
AGENT_MODULES: tuple[str, ...] = (
    "twofold",
    "twofold.errors",
    "twofold.guest",
    "twofold.guest.agent",
    "twofold.guest.archive",
    "twofold.guest.boot",
    "twofold.guest.chores",
    "twofold.guest.configure",
    "twofold.guest.errand",
    "twofold.guest.freeze",
    "twofold.guest.growing",
    "twofold.guest.hush",
    "twofold.guest.identity",
    "twofold.guest.init",
    "twofold.guest.jsontext",
    "twofold.guest.lean",
    "twofold.guest.netport",
    "twofold.guest.plugging",
    "twofold.guest.ports",
    "twofold.guest.processors",
    "twofold.guest.program",
    "twofold.guest.protocol",
    "twofold.guest.renew",
    "twofold.guest.child",
    "twofold.guest.session",
    "twofold.guest.settling",
    "twofold.guest.virtioport",
    "twofold.linux",
    "twofold.linux.capabilities",
    "twofold.linux.libc",
    "twofold.linux.mount",
    "twofold.linux.netconf",
    "twofold.linux.openat2",
    "twofold.linux.process",
    "twofold.linux.procfs",
    "twofold.linux.title",
)
