"""What a guest with cloud-init is told at its first boot: a NoCloud seed, a disc named CIDATA.

User, SSH keys, host name and network, and a file of the user's own. The disc is made anew at every
start, by xorriso; the instance-id is the instance's own, so a copy of its disk in another instance
sets itself up again. The texts are JSON, which is YAML: nothing in them can be anything else.
Passwords are not made here, and nothing of it is logged.

With a file of the user's own, ours is the vendor's data, which cloud-init reads besides: what the
file says of the same thing (``users``, say) counts.
"""

import json
import os
import re
import subprocess
import tempfile
from typing import Any

from twofold.errors import InvalidInput, NoSpace, TimedOut, Unavailable
from twofold.instance.place import hostname_of
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_KEY = re.compile(r"(ssh-[a-z0-9-]+|ecdsa-[a-z0-9-]+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+=*( .*)?")
# What cloud-init knows user-data by, in any case and after any white space.
_BEGINNINGS = (
    *("#cloud-config", "#cloud-boothook", "#!", "#include", "#part-handler", "## template: jinja"),
    *("#ps1", "rem cmd", "<powershell>", "<script>"),  # cloudbase-init's besides, for Windows
    "#alpine-config",  # tiny-cloud's
)
_MIME = "mime-version:"
_MIME_WITHIN = 4096
_SHOWN = 40
_XORRISO = "/usr/bin/xorriso"
_TIMEOUT_S = 60.0


def wanted(spec: InstanceSpec) -> bool:
    """Only where something was asked for: another drive may confuse an old system."""
    return bool(spec.media != "root" and (spec.user or spec.ssh_keys or spec.user_data))


def check(spec: InstanceSpec) -> None:
    """Raises InvalidInput."""
    if spec.user and not _USER.fullmatch(spec.user):
        raise InvalidInput(f"user {spec.user!r} is no name for a new user", hint="--user me")
    for key in spec.ssh_keys:
        # YAML has no word for what cannot be printed, and JSON's is another.
        if not (_KEY.fullmatch(key) and key.isprintable()):
            raise InvalidInput(
                f"{key[:40]!r} is no public SSH key", hint="--ssh-key ~/.ssh/id_ed25519.pub"
            )
    if spec.user and not spec.ssh_keys and spec.user_data is None:
        raise InvalidInput(
            f"nobody could log in as {spec.user!r}: it has no key", hint="--ssh-key FILE.pub"
        )


def check_user_data(text: str | None) -> None:
    """That somebody in the guest will heed it. Raises InvalidInput.

    Nothing more of it is read here: whether it is sound YAML, say, its reader knows.
    """
    if text is None:
        return
    start = text.lstrip().lower()
    if start.startswith(_BEGINNINGS) or _MIME in text[:_MIME_WITHIN].lower():
        return
    first = text.lstrip().partition("\n")[0].rstrip()
    raise InvalidInput(
        f"the user-data begins with {first[:_SHOWN]!r}: cloud-init would ignore all of it"
        if first
        else "the user-data is empty: it tells cloud-init nothing",
        hint="its first line says what it is: #cloud-config above YAML, #!/bin/sh above a script",
    )


def texts(record: Record) -> dict[str, str]:
    """File name → content. Pure."""
    spec = record.spec
    hostname = hostname_of(record.name, spec.hostname)
    found = {
        "meta-data": _yaml({"instance-id": record.id, "local-hostname": hostname}),
    }
    ours = "#cloud-config\n" + _yaml(_cloud_config(spec, hostname))
    if spec.user_data is None:
        found["user-data"] = ours
    else:
        found["user-data"] = spec.user_data
        if spec.user or spec.ssh_keys:
            found["vendor-data"] = ours
    if record.mac:
        card = {"match": {"macaddress": record.mac}, "dhcp4": True}
        found["network-config"] = _yaml({"version": 2, "ethernets": {"card": card}})
    return found


def _cloud_config(spec: InstanceSpec, hostname: str) -> dict[str, Any]:
    config: dict[str, Any] = {"hostname": hostname, "ssh_pwauth": False}
    config["manage_etc_hosts"] = "localhost"  # else sudo looks for its own name in vain
    if spec.user == "root":
        config["disable_root"] = False
    if spec.user:
        user: dict[str, Any] = {"name": spec.user, "ssh_authorized_keys": spec.ssh_keys}
        if spec.user != "root":
            user |= {"sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/sh", "lock_passwd": True}
        config["users"] = [user]
    else:
        config["ssh_authorized_keys"] = spec.ssh_keys  # of the image's own default user
    return config


def _yaml(value: dict[str, Any]) -> str:
    # Not \u: JSON writes what is beyond 16 bits in two halves, of which YAML makes nonsense.
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write(path: str, files: dict[str, str]) -> None:
    """Make the disc at ``path``. Blocks. Raises Unavailable, NoSpace, TimedOut."""
    folder = os.path.dirname(path)
    with tempfile.TemporaryDirectory(prefix=".seed-", dir=folder) as scratch:
        names = []
        for name, content in files.items():
            with open(f"{scratch}/{name}", "w", encoding="utf-8") as file:
                file.write(content)
            names.append(f"{scratch}/{name}")
        made = f"{scratch}/seed.iso"
        words = [_XORRISO, "-as", "mkisofs", "-quiet", "-V", "CIDATA", "-J", "-r", "-o", made]
        try:
            done = subprocess.run(
                [*words, *names], capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except FileNotFoundError:
            raise Unavailable(
                "xorriso, which makes the disc with what the guest is told, is not installed",
                hint="apt-get install xorriso",
            ) from None
        except subprocess.TimeoutExpired:
            raise TimedOut(f"xorriso did not end within {_TIMEOUT_S:.0f} s") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise NoSpace(
                f"xorriso could not make {path!r}: {said[-1] if said else done.returncode}",
                hint="df -h",
            )
        os.chmod(made, 0o600)
        os.rename(made, path)
