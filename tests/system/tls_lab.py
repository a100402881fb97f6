"""TLS for guests whose image has no program for it: the host's ``openssl`` with its libraries."""

import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

_RUN = """#!/bin/sh
OPENSSL_CONF=/tls/conf exec /tls/{loader} --library-path /tls /tls/openssl "$@"
"""
PORT = 4433
MAKE_CERTIFICATE = (
    "cd /tls && ./run req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 10 "
    "-subj /CN=guest -keyout key.pem -out cert.pem 2>/dev/null"
)
# In a session of its own: it outlives the exec that starts it, and is copied as a service is.
SERVE = (
    "setsid /tls/run s_server -www -quiet -accept 4433 -cert /tls/cert.pem -key /tls/key.pem "
    "</dev/null >/dev/null 2>&1 &"
)
NEW_KEY = "/tls/run genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 2>/dev/null"


def bring(folder: Path) -> Path:
    """A directory to be copied to ``/tls`` of any amd64 guest; ``/tls/run`` is openssl."""
    tls = folder / "tls"
    tls.mkdir()
    program = shutil.which("openssl")
    assert program, "openssl is not installed (scripts/setup --tests)"
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    files = [Path(found) for found in re.findall(r"(/\S+) \(0x", listed)]
    for path in (Path(program), *files):
        shutil.copy(path, tls / path.name)
    (loader,) = (path.name for path in files if path.name.startswith("ld-linux"))
    (tls / "conf").write_text("[req]\ndistinguished_name=name\n[name]\n")
    (tls / "run").write_text(_RUN.format(loader=loader))
    (tls / "run").chmod(0o755)
    return tls


def server_hello(address: str) -> tuple[str, str]:
    """The server's random number and its half of the key exchange, as a TLS 1.3 server says them
    before anything is encrypted: hex digits."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    with socket.create_connection((address, PORT), timeout=30) as line:
        line.sendall(outgoing.read())
        with line.makefile("rb") as stream:
            header = stream.read(5)
            body = stream.read(int.from_bytes(header[3:], "big"))
    assert (header[0], body[0]) == (22, 2), "no ServerHello"
    # Type and length (4), version (2), random (32); the last extension is the key share, X25519.
    assert body[-36:-32] == bytes.fromhex("001d0020"), "another kind of key share"
    return body[6:38].hex(), body[-32:].hex()
