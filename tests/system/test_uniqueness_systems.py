"""A real TLS server under the image's own init, and what a copy of it says: `after-copy`."""

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
import tls_lab

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
IMAGE = "debian-nginx"
SERVE = f"""
set -e
mkdir /etc/tls && cd /etc/tls
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 10 \
    -subj /CN=guest -keyout key.pem -out cert.pem 2>/dev/null
cat > /etc/nginx/conf.d/tls.conf <<'CONF'
server {{
    listen {tls_lab.PORT} ssl;
    ssl_certificate /etc/tls/cert.pem;
    ssl_certificate_key /etc/tls/key.pem;
}}
CONF
systemctl restart nginx
"""
AFTER_COPY = """#!/bin/sh
echo "$1 $(id -u) $(hostname)" >> /copied
systemctl restart nginx
"""
# Both processes: the master, which systemd knows, and the worker, which draws.
WHO = "systemctl show -p MainPID --value nginx; pgrep -f '^nginx: worker'; cat /copied 2>&1 || :"


def sh(twofold: Runner, name: str, script: str, stdin: str = "") -> str:
    done = twofold("exec", "-i", name, "sh", "-c", script, stdin=stdin.encode(), check=True,
                   timeout_s=200)  # fmt: skip
    return done.stdout.decode()


def hello(twofold: Runner, name: str) -> tuple[str, str]:
    shown = json.loads(twofold("show", name, "--json", check=True).stdout)
    return tls_lab.server_hello(str(shown["address"]))


@pytest.fixture
def server(twofold: Runner, no_leaks: Callable[[], None]) -> Iterator[str]:
    """nginx as a unit of a machine with an init; it has answered, so its random state is drawn."""
    if twofold("image", "show", IMAGE).returncode != 0:
        twofold("image", "build", IMAGE, "--include", "nginx-light,openssl", timeout_s=600,
                check=True)  # fmt: skip
    try:
        twofold("run", "-d", "--vm", "--system", "--name", "web", IMAGE, check=True, timeout_s=800)
        sh(twofold, "web", SERVE)
        assert hello(twofold, "web") != hello(twofold, "web")
        yield "web"
    finally:
        twofold("rm", "-f", "web")


@pytest.mark.slow
def test_a_unit_with_random_numbers_of_its_own_is_restarted_in_the_copy_alone(
    twofold: Runner, server: str
) -> None:
    try:
        twofold("fork", server, "--name", "blind", check=True, timeout_s=200)
        assert hello(twofold, "blind") == hello(twofold, server), "nginx has learned to notice"
        twofold("rm", "-f", "blind", check=True)

        install = "mkdir -p /etc/twofold; cat > /etc/twofold/after-copy; chmod 755 /etc/twofold/*"
        sh(twofold, server, install, AFTER_COPY)
        before = sh(twofold, server, WHO).splitlines()
        assert before[2].endswith("No such file or directory")
        twofold("fork", server, "--name", "renewed", check=True, timeout_s=200)
        said, parent = hello(twofold, "renewed"), hello(twofold, server)
        assert said[0] != parent[0]
        assert said[1] != parent[1]
        # Another server there; here the same, which goes on undisturbed.
        after = sh(twofold, "renewed", WHO).splitlines()
        assert after[2:] == ["fork 0 renewed"]
        assert not set(after[:2]) & set(before[:2])
        assert sh(twofold, server, WHO).splitlines() == before
        assert sh(twofold, "renewed", "systemctl is-system-running || :") == "running\n"
        # What its systemd does it says where a container's would.
        twofold("stop", "renewed", check=True, timeout_s=100)
        assert b"Stopped target" in twofold("logs", "renewed").stdout
    finally:
        twofold("rm", "-f", "blind", "renewed")
