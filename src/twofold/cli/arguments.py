"""What a command line means: the parser all verbs share, and the words options are made of.

Every value that is refused here is a ``UsageError`` (exit code 2). Nothing here talks to the
daemon. Kept free of ``re``, ``typing`` and ``subprocess`` at run time: it loads on every start.
"""

from __future__ import annotations

import argparse
import os

from twofold.errors import InvalidInput, TwofoldError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

MEMORY_MINIMUM = 4 << 20
_NAMES = ("NAME", "SNAPSHOT", "KEY")  # the words for what has no slash, unlike an image
# What people know from other tools under another name, or what is not here for a reason.
FOREIGN = {
    "--privileged": "name what it needs: --cap-add, --device, --security-opt; or --system, or --vm",
    "--net": "--network default or none",
    "--mount": "-v SRC:DST[:ro], or --tmpfs DIR",
    "--no-trunc": "nothing is cut where output is not a terminal",
    "--memory-swap": "--memory counts memory and swap together",
    "--userns": "every container has a user namespace of its own; there is no other mode",
    "--pid": "every instance has processes of its own; there is no other mode",
    "--init": "it is the default: a small init reaps; --system runs the image's own",
    "--format": "--json, with jq",
    "--filter": "--json, with jq",
}
SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class UsageError(TwofoldError):
    """The command line itself is wrong. Only the CLI can raise it, so it lives here."""

    code, http_status, exit_code = "usage", 400, 2


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Narrow enough for a quarter of a screen, wide enough for our longest flag."""

    def __init__(self, prog: str) -> None:
        # Made for every add_argument: without a width argparse imports shutil, and with it the
        # compression modules (6 ms).
        try:
            columns = os.get_terminal_size(1).columns
        except OSError:
            columns = 80
        super().__init__(prog, max_help_position=30, width=min(columns, 100) - 2)


class Parser(argparse.ArgumentParser):
    """One verb's parser. Raises instead of exiting, names the nearest flag, never abbreviates.

    ``rest`` names a positional (its destination must be ``command``): everything after the
    ``words_before_rest``-th positional belongs to the payload, options included, untouched.
    """

    def __init__(
        self,
        verb: str,
        help_line: str,
        *,
        examples: Sequence[str] = (),
        words_before_rest: int = 0,
        description: str = "",
    ) -> None:
        text = f"{help_line[:1].upper()}{help_line[1:]}."
        if description:
            text += f"\n\n{description.strip()}"
        super().__init__(
            prog=f"twofold {verb}",
            description=text,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        )
        self.verb = verb
        self.help_line = help_line
        self.long_description = description.strip()
        self.examples = tuple(examples)
        self.words_before_rest = words_before_rest
        self.common = self.add_argument_group("common options")
        self.common.add_argument("-h", "--help", action="help", help="show this help and exit")
        self.common.add_argument(
            "--root",
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="use the separate Twofold rooted at DIR (also: TWOFOLD_ROOT)",
        )
        self.common.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print data and errors as JSON",
        )
        self._positionals.title = "arguments"
        self._optionals.title = "options"

    def error(self, message: str) -> NoReturn:
        raise UsageError(_plain(message), hint=f"twofold {self.verb} --help")

    def parse(self, words: list[str], defaults: argparse.Namespace) -> argparse.Namespace:
        """Parse the words after the verb on top of what stood before it."""
        rest: list[str] = []
        if self.words_before_rest:
            split = self._end_of_own_words(words)
            words, rest = words[:split], words[split:]
        before = argparse.Namespace(**vars(defaults))
        args, extra = self.parse_known_args(words, defaults)
        if extra and not extra[0].startswith("-"):
            # An optional word after an option: "screenshot box --json now.png".
            args, extra = self.parse_known_intermixed_args(words, before)
        if extra:
            self._refuse_extra(extra)
        if self.words_before_rest:
            args.command = rest
        self._check_names(args)
        return args

    def _check_names(self, args: argparse.Namespace) -> None:
        """An empty one, or one with a slash, would be another path of the API."""
        for action in self.positional_actions():
            found = getattr(args, action.dest, None)
            for word in found if isinstance(found, list) else [found]:
                if not isinstance(word, str):
                    continue  # none, or a size
                if not word and action.metavar in (*_NAMES, "IMAGE", "OS"):
                    raise UsageError(
                        f"{action.metavar} is empty", hint=f"twofold {self.verb} --help"
                    )
                slash = "/" in word.partition("=")[0] and not self.verb.startswith("image ")
                if slash and action.metavar in _NAMES:
                    raise UsageError(
                        f"{word!r} is no {action.metavar}: it has a slash",
                        hint=f"twofold {self.verb} --help",
                    )

    def option_actions(self) -> dict[str, argparse.Action]:
        """Every spelling of every option, for completion and the reference."""
        return dict(self._option_string_actions)

    def positional_actions(self) -> list[argparse.Action]:
        return self._get_positional_actions()

    def _end_of_own_words(self, words: list[str]) -> int:
        """Index of the first word that belongs to the payload."""
        index = seen = 0
        while index < len(words) and seen < self.words_before_rest:
            word = words[index]
            if word == "--":
                # What follows is positional: the next word is ours, what comes after is not.
                return min(index + 1 + self.words_before_rest - seen, len(words))
            if word.startswith("-") and len(word) > 1:
                index += self._width_of_option(word)
            else:
                seen += 1
                index += 1
        return min(index, len(words))

    def _width_of_option(self, word: str) -> int:
        """How many words the option at hand takes: itself, or itself and its value."""
        if word.startswith("--"):
            name, equals, _ = word.partition("=")
            action = self._option_string_actions.get(name)
            if action is None:
                self._refuse_extra([word])
            return 1 if equals or action.nargs == 0 else 2
        for position, letter in enumerate(word[1:], start=1):
            action = self._option_string_actions.get(f"-{letter}")
            if action is None:
                self._refuse_extra([f"-{letter}" if position == 1 else word])
            if action.nargs != 0:
                return 1 if position < len(word) - 1 else 2
        return 1

    def _refuse_extra(self, extra: Sequence[str]) -> NoReturn:
        flag = next((word for word in extra if word.startswith("-")), None)
        if flag is None:
            raise UsageError(f"too many words: {extra[0]!r}", hint=f"twofold {self.verb} --help")
        name = flag.partition("=")[0]
        if name in FOREIGN:
            raise UsageError(f"there is no option {name!r} here", hint=FOREIGN[name])
        near = nearest(name, self._option_string_actions)
        hint = f"did you mean {near}?" if near else f"twofold {self.verb} --help"
        raise UsageError(f"unknown option {name!r}", hint=hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """The most similar known word, or "" if none is near. Imports only when something is wrong."""
    import difflib

    # Without the dashes: "-name" is near to "--name", and "--foo" is not near to "--root".
    names = {name.lstrip("-"): name for name in known if len(name) > 2}
    bare = word.lstrip("-")
    starts = [name for name in names if name.startswith(bare)] if len(bare) > 2 else []
    found = starts or difflib.get_close_matches(bare, names, n=1, cutoff=0.6)
    return names[found[0]] if found else ""


def _plain(message: str) -> str:
    """argparse's sentences in our form."""
    message = message.replace("the following arguments are required: ", "missing: ")
    if message.startswith("argument "):
        message = message.removeprefix("argument ")
    return message


def size(text: str) -> int:
    """``512m``, ``2g``, ``1.5GiB``, ``64MB``: powers of 1024 throughout; a bare number is bytes."""
    digits = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = digits[-1:] if digits[-1:] in SIZE_UNITS else ""
    if digits and digits[-1].isalpha():
        digits = digits[:-1]
    number = _decimal(digits)
    if number is None or number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512m, 2g or 1.5GiB")
    if unit == "" and text.strip()[-1:].lower() not in "0123456789b.":
        raise argparse.ArgumentTypeError(f"{text!r} has an unknown unit: use k, m, g or t")
    return int(number * SIZE_UNITS[unit])


def memory(text: str) -> int:
    """A size that a process can live in."""
    found = size(text)
    if found < MEMORY_MINIMUM:
        raise argparse.ArgumentTypeError(f"{text!r} is too little memory: at least 4m")
    return found


def cpus(text: str) -> float:
    number = _decimal(text)
    if number is None or number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of CPUs such as 0.5 or 2")
    return number


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def restart_policy(text: str) -> str:
    name, colon, number = text.partition(":")
    if colon:
        known = name == "on-failure" and number.isascii() and number.isdigit()
    else:
        known = name in ("no", "always", "unless-stopped", "on-failure")
    if not known:
        raise argparse.ArgumentTypeError(
            f"restart policy {text!r} is not known: no, always, unless-stopped, on-failure[:N]"
        )
    return text


def seconds(text: str) -> float:
    number = _decimal(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _decimal(text: str) -> float | None:
    """Digits and one point: ``float()`` alone takes ``1_0``, ``inf`` and non-Latin digits."""
    if not text.isascii() or not text.replace(".", "", 1).isdigit():
        return None
    return float(text)


def environment(words: Sequence[str], files: Sequence[str]) -> list[str]:
    """``-e`` and ``--env-file``: ``K=V`` as it is; a bare ``K`` is taken from our own environment.

    Files come first so that ``-e`` wins. A bare name that is not set here is left out.
    """
    found: list[str] = []
    for path in files:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = [line.rstrip("\r\n") for line in file]
        except OSError as error:
            raise InvalidInput(
                f"environment file {path!r}: {error.strerror}", hint=f"ls -l {path}"
            ) from None
        found += [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    found += words
    pairs: list[str] = []
    for word in found:
        name, equals, _ = word.partition("=")
        if not name:
            raise UsageError(f"environment {word!r} has no name", hint="-e NAME=value")
        if equals:
            pairs.append(word)
        elif name in os.environ:
            pairs.append(f"{name}={os.environ[name]}")
    return pairs


def volume(text: str) -> dict[str, Any]:
    """``SRC:DST[:ro|rw]``. SRC is a file or directory here, relative to the current directory."""
    parts = text.split(":")
    options = parts.pop() if len(parts) == 3 else "rw"
    if len(parts) != 2 or not all(parts):
        raise UsageError(f"volume {text!r} is not SRC:DST or SRC:DST:ro", hint="-v ./data:/data")
    if options not in ("ro", "rw"):
        raise UsageError(f"volume option {options!r} is neither ro nor rw", hint="-v SRC:DST:ro")
    source, target = os.path.abspath(os.path.expanduser(parts[0])), parts[1]
    if not target.startswith("/"):
        raise UsageError(f"volume target {target!r} is not absolute", hint=f"-v SRC:/{target}")
    try:
        os.stat(source)
    except FileNotFoundError:
        raise InvalidInput(
            f"volume source {source!r} does not exist", hint=f"mkdir -p {source}"
        ) from None
    except OSError:
        pass  # not ours to see; the daemon decides
    return {"source": source, "target": target, "read_only": options == "ro"}


def tmpfs(text: str) -> dict[str, Any]:
    """``DIR[:size=64m,mode=1777,exec]``."""
    target, _, words = text.partition(":")
    found: dict[str, Any] = {"target": target}
    for word in words.split(",") if words else []:
        key, _, value = word.partition("=")
        if key == "size":
            try:
                found["size_bytes"] = size(value)
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"tmpfs {text!r}: {error}") from None
        elif key == "mode":
            found["mode"] = value
        elif word == "exec":
            found["executable"] = True
        elif word not in ("noexec", "nosuid", "nodev", "rw"):  # as they are anyway
            raise UsageError(
                f"tmpfs {text!r}: unknown option {word!r}", hint="--tmpfs /run:size=64m,mode=755"
            )
    return found


def ulimit(text: str) -> tuple[str, list[int]]:
    """``nofile=1024:4096``, ``core=unlimited``: the name, and soft and hard."""
    name, equals, rest = text.partition("=")
    soft, colon, hard = rest.partition(":")
    values = []
    for word in (soft, hard if colon else soft):
        if word in ("unlimited", "-1"):
            values.append(-1)
        elif word.isascii() and word.isdigit():
            values.append(int(word))
        else:
            equals = ""
    if not name or not equals:
        raise UsageError(f"ulimit {text!r} is not NAME=SOFT[:HARD]", hint="--ulimit nofile=1024")
    return name.lower(), values


def device(text: str) -> dict[str, Any]:
    """``/dev/fuse``, ``/dev/fuse:/dev/other:rw``, ``/dev/fuse:r``."""
    parts = text.split(":")
    found: dict[str, Any] = {"path": parts[0]}
    if len(parts) > 1 and parts[-1] and set(parts[-1]) <= set("rwm"):
        access = parts.pop()
        found["access"] = "".join(letter for letter in "rwm" if letter in access)
    if len(parts) == 2:
        found["target"] = parts[1]
    if len(parts) > 2 or not all(part.startswith("/") for part in parts):
        raise UsageError(
            f"device {text!r} is not DEVICE[:INSIDE][:rwm]", hint="--device /dev/fuse:rw"
        )
    return found


def security(words: Sequence[str]) -> dict[str, Any]:
    """``--security-opt``: each word opens or closes one named thing."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.replace(":", "=", 1).partition("=")
        if key == "seccomp" and value in ("unconfined", "default"):
            found["seccomp"] = value
        elif key == "no-new-privileges" and (value if equals else "true") in ("true", "false"):
            found["no_new_privileges"] = value != "false"
        else:
            raise UsageError(
                f"security option {word!r} is not known",
                hint="seccomp=unconfined, no-new-privileges=true or no-new-privileges=false",
            )
    return found


def ports(text: str) -> list[dict[str, Any]]:
    """``[IP:]HOST:GUEST[/udp]``, each side a number or an equally long range ``8000-8010``."""
    rest, slash, protocol = text.partition("/")
    protocol = protocol if slash else "tcp"
    if protocol not in ("tcp", "udp"):
        raise UsageError(f"port {text!r}: protocol {protocol!r} is neither tcp nor udp")
    host_ip = "0.0.0.0"
    if rest.startswith("["):
        host_ip, bracket, rest = rest[1:].partition("]:")
        if not bracket:
            raise UsageError(f"port {text!r} is not [IPv6]:HOST:GUEST", hint="-p [::1]:8080:80")
    parts = rest.split(":")
    if len(parts) == 3:
        host_ip, parts = parts[0], parts[1:]
    if len(parts) == 1:
        raise UsageError(
            f"port {text!r} names only one side; Twofold does not choose a host port for you",
            hint=f"-p 8080:{parts[0] or 80}",
        )
    if len(parts) != 2:
        raise UsageError(f"port {text!r} is not [IP:]HOST:GUEST[/udp]", hint="-p 8080:80")
    host, guest = _port_range(parts[0], text), _port_range(parts[1], text)
    if len(host) != len(guest):
        raise UsageError(f"port {text!r}: {len(host)} host ports for {len(guest)} guest ports")
    return [
        {"host_ip": host_ip, "host_port": h, "guest_port": g, "protocol": protocol}
        for h, g in zip(host, guest, strict=True)
    ]


def _port_range(text: str, whole: str) -> range:
    first, dash, last = text.partition("-")
    ends = [first, last if dash else first]
    if not all(end.isascii() and end.isdigit() and 1 <= int(end) <= 65535 for end in ends):
        raise UsageError(f"port {whole!r}: {text!r} is not a port from 1 to 65535")
    if int(ends[1]) < int(ends[0]):
        raise UsageError(f"port {whole!r}: range {text!r} runs backwards")
    return range(int(ends[0]), int(ends[1]) + 1)


def entrypoint(text: str) -> list[str]:
    """One program, or a JSON array of words; "" clears the image's entry point."""
    if not text.startswith("["):
        return [text] if text else []
    import json

    try:
        words = json.loads(text)
    except ValueError:
        raise UsageError(f"entry point {text!r} is not a JSON array of words") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"entry point {text!r} is not a JSON array of words")
    return words
