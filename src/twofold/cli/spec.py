"""The options that ``run`` and ``create`` share, and the instance specification they make.

Pure: from parsed words to the JSON of ``POST /v1/instances``. Defaults belong to the daemon, so
what the user did not say is not in the result.
"""

from __future__ import annotations

from twofold.cli import arguments, hardware
from twofold.cli.arguments import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def configure(parser: arguments.Parser) -> None:
    """Add the image, the command and every option that describes an instance."""
    add = parser.add_argument
    add(
        "image",
        metavar="IMAGE",
        nargs="?",
        help="an image's name: debian, debian:trixie, alpine …; or a disk, .iso or floppy file",
    )
    add(
        "command",
        metavar="COMMAND",
        nargs="*",
        default=[],
        help="what runs, with its own options; default: as the image says",
    )
    add("--name", help="name of the instance; default: one is made up")
    add("-i", "--interactive", action="store_true", help="keep standard input open")
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add("--rm", action="store_true", help="remove the instance when it has ended")
    _add_walls(parser)
    _add_process(parser)
    _add_resources(parser)
    _add_privileges(parser)
    hardware.configure(parser)


def _add_walls(parser: arguments.Parser) -> None:
    group = parser.add_argument_group("walls")
    group.add_argument("--vm", action="store_true", help="a virtual machine (--isolation vm)")
    group.add_argument(
        "--isolation", choices=("container", "vm"), help="which wall; default: container"
    )
    group.add_argument(
        "--hardware",
        choices=("virtio", "emulated"),
        help="of a VM: fast para-virtual devices (default) or what an unmodified system expects",
    )
    group.add_argument(
        "--arch", help="processor the image is for; arm64 is emulated in a VM on an amd64 host"
    )
    group.add_argument(
        "--cold", action="store_true", help="boot the VM, even where it could be forked"
    )
    group.add_argument(
        "--nested", action="store_true", help="let the VM run virtual machines with KVM itself"
    )
    group.add_argument(
        "--system", action="store_true", help="boot the image's own init instead of a command"
    )


def _add_process(parser: arguments.Parser) -> None:
    group = parser.add_argument_group("process")
    group.add_argument(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="K=V",
        help="set a variable; K alone takes it from your environment; repeatable",
    )
    group.add_argument(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="read variables from a file, one per line; repeatable",
    )
    group.add_argument("-w", "--workdir", metavar="DIR", help="working directory inside")
    group.add_argument("-u", "--user", metavar="USER[:GROUP]", help="user inside, name or number")
    group.add_argument(
        "--entrypoint",
        metavar="PROGRAM",
        help='program in place of the image\'s own; a JSON array for several words; "" for none',
    )
    group.add_argument("--hostname", metavar="NAME", help="host name inside")
    group.add_argument(
        "--restart",
        type=arguments.restart_policy,
        metavar="POLICY",
        help="no, always, unless-stopped, on-failure or on-failure:N",
    )


def _add_resources(parser: arguments.Parser) -> None:
    group = parser.add_argument_group("resources")
    group.add_argument(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="SRC:DST[:ro]",
        help="show a host directory or file inside; repeatable",
    )
    group.add_argument(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[IP:]HOST:GUEST[/udp]",
        help="publish a port or an equally long range (8000-8010:80-90); repeatable",
    )
    group.add_argument(
        "--network", choices=("default", "none"), help="default: own address behind NAT; none"
    )
    group.add_argument("--cpus", type=arguments.cpus, metavar="N", help="CPUs, such as 0.5 or 2")
    group.add_argument(
        "-m", "--memory", type=arguments.memory, metavar="SIZE", help="memory: 512m, 2g, 1.5GiB"
    )
    group.add_argument(
        "--pids",
        "--pids-limit",
        dest="pids",
        type=arguments.count,
        metavar="N",
        help="most processes and threads",
    )


def _add_privileges(parser: arguments.Parser) -> None:
    group = parser.add_argument_group("privileges")
    group.add_argument(
        "--cap-add",
        action="append",
        default=[],
        metavar="NAME",
        help="grant a capability (NET_RAW, ALL); show says what it is good for; repeatable",
    )
    group.add_argument(
        "--cap-drop",
        action="append",
        default=[],
        metavar="NAME",
        help="take a capability of the default set away (KILL, ALL); repeatable",
    )
    group.add_argument(
        "--read-only", action="store_true", help="nothing may be written to the root"
    )
    group.add_argument(
        "--tmpfs",
        action="append",
        default=[],
        metavar="DIR[:size=64m,mode=1777,exec]",
        help="a file system in memory; repeatable",
    )
    group.add_argument("--shm-size", type=arguments.size, metavar="SIZE", help="of /dev/shm")
    group.add_argument(
        "--ulimit",
        action="append",
        default=[],
        metavar="NAME=SOFT[:HARD]",
        help="a resource limit: nofile=1024:4096, core=unlimited; repeatable",
    )
    group.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="DEVICE[:INSIDE][:rwm]",
        help="a device of the host in a container: /dev/fuse; or for a machine with a system of "
        "its own alone: usb:VENDOR:PRODUCT, usb:BUS.DEVICE, pci:ADDRESS; repeatable",
    )
    group.add_argument(
        "--security-opt",
        action="append",
        default=[],
        metavar="WORD=VALUE",
        help="seccomp=unconfined, or no-new-privileges=true|false; repeatable",
    )


def build(args: argparse.Namespace) -> dict[str, Any]:
    """The specification. Raises UsageError for options that contradict each other."""
    image, name = _image_and_name(args)
    isolation = _isolation(args)
    for word, given in (("--cold", args.cold), ("--nested", args.nested)):
        if given and isolation != "vm":
            raise UsageError(f"{word} is of a virtual machine", hint="add --vm to the command")
    if args.hardware and isolation != "vm" and args.media is None:
        raise UsageError(
            f"--hardware {args.hardware} is of a virtual machine", hint="add --vm to the command"
        )
    if args.restart and args.rm and args.restart != "no":
        raise UsageError("--rm and --restart contradict each other", hint="leave one of them out")
    said: dict[str, Any] = {
        "image": image,
        "name": name,
        "isolation": isolation,
        "hardware": args.hardware,
        "system": args.system or None,
        "command": args.command or None,
        "entrypoint": None if args.entrypoint is None else arguments.entrypoint(args.entrypoint),
        "env": arguments.environment(args.env, args.env_file) or None,
        "workdir": args.workdir,
        "user": args.user,
        "volumes": [arguments.volume(text) for text in args.volume] or None,
        "ports": [port for text in args.publish for port in arguments.ports(text)] or None,
        "cpus": args.cpus,
        "memory_bytes": args.memory,
        "pids": args.pids,
        "network": args.network,
        "hostname": args.hostname,
        "restart": args.restart,
        **_privileges(args),
        "interactive": args.interactive or None,
        "tty": args.tty or None,
        "auto_remove": args.rm or None,
        "cold": args.cold or None,
        **hardware.build(args),
        "nested": args.nested or None,
        "arch": args.arch,
    }
    return {key: value for key, value in said.items() if value is not None}


def _image_and_name(args: argparse.Namespace) -> tuple[str, str | None]:
    """``IMAGE COMMAND …``, or with ``--image`` just ``NAME``."""
    if args.media is None:
        if args.image is None:
            raise UsageError("missing: IMAGE", hint="twofold run debian")
        return hardware.image(args.image), args.name
    if args.command:
        raise UsageError(
            f"with --image comes one word, the name; {args.command[0]!r} is one too many",
            hint="options go before the name; there is no command",
        )
    if args.image and args.name:
        raise UsageError(f"two names: {args.image!r} and {args.name!r}")
    return hardware.image(args.media), args.image or args.name


def _privileges(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "cap_add": args.cap_add or None,
        "cap_drop": args.cap_drop or None,
        "read_only": args.read_only or None,
        "tmpfs": [arguments.tmpfs(text) for text in args.tmpfs] or None,
        "shm_bytes": args.shm_size,
        "ulimits": dict(arguments.ulimit(text) for text in args.ulimit) or None,
        "devices": [
            arguments.device(text) for text in args.device if not hardware.is_host_device(text)
        ]
        or None,
        **arguments.security(args.security_opt),
    }


def _isolation(args: argparse.Namespace) -> str | None:
    if args.vm and args.isolation == "container":
        raise UsageError("--vm and --isolation container contradict each other")
    return "vm" if args.vm else args.isolation


def terminal_environment(env: list[str], term: str) -> list[str]:
    """``env`` with TERM for a command that gets a terminal.

    Only names that any image knows are passed on; another terminal is called xterm-256color.
    """
    if any(pair.startswith("TERM=") for pair in env):
        return env
    known = ("xterm", "xterm-256color", "linux", "screen", "screen-256color", "vt100", "vt220")
    return [*env, f"TERM={term if term in known else 'xterm-256color'}"]
