"""Images built here from the distribution's own signed archive, by ``mmdebstrap``.

The archive, its keyring and the way to reach it are those of the host's apt. The result streams
straight into the unpacker. The image is made for running: an init for ``--system``, the tools a
person expects, no manual pages, no caches, and nothing of this host (name, resolver, proxies).

Refuses package names that apt could read as something else. Services are installed, not started.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from twofold.errors import Conflict, InvalidInput, NotFound, TwofoldError
from twofold.image import config, manifest, names
from twofold.image.child import Child
from twofold.image.sources import aptsources, emulated
from twofold.image.sources.aptsources import HostArchive
from twofold.image.sources.file import describe_layers
from twofold.image.store import ImageStore
from twofold.image.workspace import ELSEWHERE, ELSEWHERE_PREFIX, storage_errors
from twofold.model.image import Image
from twofold.model.progress import Progress, silent
from twofold.storage import trees

BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "gpgv",
    "iproute2",
    "procps",
    "systemd",
    "systemd-sysv",
)
VARIANTS = ("minbase", "apt", "essential", "required", "important", "standard", "buildd")
REQUEST = "io.twofold.request"
DEFAULT_SUITE = "bookworm"
_SUITE = re.compile(r"[a-z][a-z0-9-]{1,31}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}\Z")
_KEPT_ENVIRONMENT = ("PATH", "http_proxy", "https_proxy", "no_proxy")

# Its mounts (the host's /dev among them) and its processes are in namespaces that die with it: what
# is left on disk after a kill is a plain directory.
_ALONE = (
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--",
)

# Paths of documentation that a running image never reads; copyrights stay.
_LEFT_OUT = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/linda/*",
)
# Run by mmdebstrap's shell with the new root as $1. Constant: nothing of a user's is in them.
_NEUTRAL = (
    ': > "$1/etc/machine-id"; rm -f "$1/var/lib/dbus/machine-id"',
    'echo localhost > "$1/etc/hostname"; rm -f "$1/etc/resolv.conf"; : > "$1/etc/resolv.conf"',
    'printf "127.0.0.1 localhost\\n::1 localhost\\n" > "$1/etc/hosts"',
    'rm -rf "$1"/var/log/apt "$1"/var/log/*.log "$1"/var/cache/debconf/*-old',
    'rm -rf "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/*',
)
# What mmdebstrap says, in order, and how far along that is (measured on the default image).
_STAGES = (
    ("running apt-get update", 0.02, "fetching the package lists"),
    ("downloading packages", 0.10, "downloading the base system"),
    ("extracting archives", 0.20, "unpacking the base system"),
    ("installing essential packages", 0.25, "configuring the base system"),
    ("installing remaining packages", 0.45, "installing the other packages"),
    ("cleaning package lists", 0.78, "cleaning up"),
    ("creating tarball", 0.80, "storing the image"),
)


def build(
    store: ImageStore,
    name: str,
    suite: str | None = None,
    include: Sequence[str] = (),
    variant: str | None = None,
    progress: Progress = silent,
    *,
    force: bool = False,
    architecture: str | None = None,
) -> Image:
    """Build the image ``name``, or return it when the same request has built it before.

    ``suite`` follows from a built-in name; ``architecture`` is another processor than this host's.
    Raises Conflict when the name means something else (``force`` builds anew and lets the name go
    over), InvalidInput, Unavailable, Unsupported.
    """
    wanted = names.normalise(name)
    suite = suite or names.BUILTIN_SUITES.get(wanted, DEFAULT_SUITE)
    variant = variant or "minbase"
    _check(wanted, suite, include, variant)
    packages = sorted({*BASE_PACKAGES, *include})
    request = f"{variant} {suite} {','.join(packages)}"
    if architecture:
        request += f" {architecture}"
    if not force and (found := _existing(store, wanted, request)) is not None:
        return found
    archive = aptsources.read_host()
    runner = emulated.runner(architecture) if architecture else []
    with store.working() as working:
        argv = command_line(
            archive, suite, packages, variant, working=working, architecture=architecture
        )
        argv = [*runner, *argv]
        _write_options(archive, working)
        layer = _run(store, argv, working, progress)
        labels = {"org.opencontainers.image.title": "debian", "io.twofold.suite": suite}
        release = _release(store.layer_path(layer[0].digest))
        if release:
            labels["org.opencontainers.image.version"] = release
        config_blob = config.write(
            architecture=architecture or manifest.host_architecture(),
            created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            layers=[layer[0].digest],
            command=["/bin/bash"],
            labels=labels,
        )
        return store.add(
            config_blob=config_blob,
            manifest_blob=describe_layers(config_blob, layer),
            name=wanted,
            source=f"mmdebstrap {suite}",
            annotations={REQUEST: request},
        )


def command_line(
    archive: HostArchive,
    suite: str,
    packages: Sequence[str],
    variant: str,
    *,
    working: str,
    architecture: str | None = None,
) -> list[str]:
    """mmdebstrap's arguments. Pure but for the look for keyrings."""
    argv = [
        *_ALONE,
        "mmdebstrap",
        "--mode=root",  # ours is root already; the other modes need user namespaces or fakeroot
        "--format=tar",
        f"--variant={variant}",
        f"--include={','.join(packages)}",
        '--aptopt=Acquire::Languages "none"',
    ]
    if architecture:
        # Its own check wants a program more, and does not find an emulator that we registered.
        argv += [f"--architectures={architecture}", "--skip=check/qemu"]
    argv += [f"--aptopt={line.rstrip(';')}" for line in archive.lasting]
    argv += [f"--dpkgopt={line}" for line in _LEFT_OUT]
    # Proxies and the like serve this build; in the image they would be wrong, and may hold secrets.
    argv += [f"--setup-hook=upload {working}/apt.conf /etc/apt/apt.conf.d/98build"]
    argv += ['--customize-hook=rm -f "$1/etc/apt/apt.conf.d/98build"']
    argv += [f"--customize-hook={hook}" for hook in _NEUTRAL]
    return [*argv, suite, "-", *aptsources.lines_for(archive, suite)]


def _check(name: str, suite: str, include: Sequence[str], variant: str) -> None:
    if not _SUITE.match(suite):
        raise InvalidInput(f"bad suite {suite[:80]!r}", hint="for instance: bookworm, trixie")
    if variant not in VARIANTS:
        raise InvalidInput(
            f"unknown variant {variant[:80]!r}", hint=f"one of {', '.join(VARIANTS)}"
        )
    for package in include:
        if not _PACKAGE.match(package):
            raise InvalidInput(
                f"bad package name {package[:100]!r}",
                hint="names as in Debian, for instance: --include apache2,vsftpd",
            )
    builtin = names.BUILTIN_SUITES.get(name)
    if builtin is not None and builtin != suite:
        raise InvalidInput(
            f"the name {name!r} stands for the suite {builtin!r}, not {suite!r}",
            hint=f"twofold image build debian:{suite}",
        )


def _existing(store: ImageStore, name: str, request: str) -> Image | None:
    try:
        found = store.resolve(name)
    except NotFound:
        return None
    made_by = store.annotations(found, name).get(REQUEST)
    if made_by == request:
        return found
    what = f"was built as {made_by!r}" if made_by else f"comes from {found.source!r}"
    raise Conflict(
        f"image {name!r} exists and {what}",
        hint="give the new image another --name, or replace this one with --force",
    )


def _write_options(archive: HostArchive, working: str) -> None:
    with open(os.path.join(working, "apt.conf"), "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in archive.options)


class _Listener:
    """Turns what mmdebstrap says into progress, and keeps what it is best known for: errors."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._fraction = 0.0
        self._message = "starting mmdebstrap"
        self.errors: list[str] = []

    def line(self, text: str) -> None:
        for start, fraction, message in _STAGES:
            if text.startswith(f"I: {start}"):
                self._fraction, self._message = fraction, message
        if text.startswith("E: "):
            self.errors = [*self.errors[-9:], text]

    def tick(self) -> None:
        self._progress(self._fraction, self._message)

    def unpacked(self, fraction: float | None, message: str) -> None:
        self._progress(self._fraction + 0.15 * (fraction or 0.0), message)


def _run(
    store: ImageStore, argv: list[str], working: str, progress: Progress
) -> list[manifest.Descriptor]:
    listener = _Listener(progress)
    env = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    env.setdefault("PATH", config.DEFAULT_PATH)
    env.update(LC_ALL="C.UTF-8", DEBIAN_FRONTEND="noninteractive")
    with (
        _temporary(working) as env["TMPDIR"],
        Child(
            argv,
            line=listener.line,
            tick=listener.tick,
            piped=True,
            env=env,
            hint="apt install mmdebstrap",
        ) as child,
    ):
        try:
            found = store.add_layer(
                child, working=working, progress=listener.unpacked, finish=child.require_success
            )
        except TwofoldError as error:
            if not child.failed():
                raise
            raise _failure(child.last_lines, listener.errors) from error
    layer = manifest.Descriptor(
        digest=found.diff_id, size_bytes=found.stream_size_bytes, media_type=manifest.OCI_LAYER
    )
    return [layer]


def _failure(last_lines: list[str], errors: list[str]) -> TwofoldError:
    return TwofoldError(
        f"mmdebstrap failed: {' / '.join((errors or last_lines)[-3:]) or 'it said nothing'}",
        hint="check that this host reaches its archive: apt-get update",
        details={"output": last_lines},
    )


@contextmanager
def _temporary(working: str) -> Iterator[str]:
    """Where mmdebstrap builds its root: outside the store, because apt's own user must get there.

    The working directory notes the place, so that it goes even when this process is killed.
    """
    parent = os.environ.get("TMPDIR", "/var/tmp")  # /tmp may be memory
    with storage_errors(f"make a directory in {parent}"):
        path = tempfile.mkdtemp(prefix=ELSEWHERE_PREFIX, dir=parent)
        try:
            with open(os.path.join(working, ELSEWHERE), "w", encoding="utf-8") as file:
                file.write(path)
            os.chmod(path, 0o755)
            yield path
        finally:
            trees.remove(path)


def _release(root: str) -> str:
    """The point release in the image: ``12.11``."""
    try:
        with open(os.path.join(root, "etc/debian_version"), "rb") as file:
            text = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return text if re.fullmatch(r"[A-Za-z0-9./-]+", text) else ""
