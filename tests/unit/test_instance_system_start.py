"""When a machine with the image's own init may start as a fork."""

from pathlib import Path
from typing import Any

import pytest

from twofold.instance.place import ImageRoot
from twofold.instance.system_start import reason_to_boot
from twofold.model.image import ImageConfig
from twofold.model.instance import InstanceSpec


@pytest.fixture
def image(tmp_path: Path) -> ImageRoot:
    base, top = tmp_path / "base", tmp_path / "top"
    (base / "etc/nginx").mkdir(parents=True)
    (base / "etc/nginx/nginx.conf").touch()
    (base / "mnt").mkdir()
    (base / "srv").symlink_to("etc")
    (top / "opt").mkdir(parents=True)
    (top / "opt/tool").touch()
    return ImageRoot(digest="sha256:0", config=ImageConfig(), layers=(str(top), str(base)))


@pytest.mark.parametrize(
    ("wish", "because"),
    [
        ({}, None),
        ({"hostname": "me", "cpus": 2.0, "memory_bytes": 1 << 30, "tty": True}, None),
        ({"env": ["A=1"]}, "-e"),
        ({"read_only": True}, "--read-only"),
        ({"cap_drop": ["SYS_TIME"]}, "--cap-drop"),
        ({"cap_add": ["SYS_TIME"]}, None),
        ({"no_new_privileges": True}, "no-new-privileges"),
        ({"no_new_privileges": False}, None),
        ({"volumes": [{"source": "/data", "target": "/work/here"}]}, None),
        ({"volumes": [{"source": "/data", "target": "/mnt"}]}, None),
        ({"volumes": [{"source": "/data", "target": "/mnt/below"}]}, None),
        ({"volumes": [{"source": "/data", "target": "/etc/nginx"}]}, "/etc/nginx"),
        ({"volumes": [{"source": "/data", "target": "/etc"}]}, "/etc"),
        ({"volumes": [{"source": "/data", "target": "//opt/../etc/nginx/"}]}, "nginx"),
        ({"volumes": [{"source": "/data", "target": "/srv/new"}]}, "/srv/new"),
        ({"tmpfs": [{"target": "/opt"}]}, "/opt"),
        ({"tmpfs": [{"target": "/fresh"}]}, None),
    ],
)
def test_only_where_services_could_not_tell(
    image: ImageRoot, wish: dict[str, Any], because: str | None
) -> None:
    spec = InstanceSpec.model_validate({"image": "x", "system": True, **wish})
    reason = reason_to_boot(spec, image)
    assert (reason is None) == (because is None), reason
    assert because is None or because in str(reason)
