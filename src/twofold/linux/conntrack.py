"""Forget tracked connections of an address (kernel 5.8 and later filter on their own side).

Needed when an address changes hands: an old entry would carry a client's packets to the new
owner, or past a freshly published port.
"""

import errno
import os
import socket
import struct

_NETLINK_NETFILTER = 12
_DELETE = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST_ACK = 0x5
_NESTED = 0x8000
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_FILTER = 1, 2, 25
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP_V4_SRC = 1
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_FLAG_IP_SRC, _FLAG_PROTO_NUM, _FLAG_DST_PORT = 1 << 0, 1 << 3, 1 << 5


def forget_address(address: str) -> None:
    """Drop every entry that ``address`` started or answers. Raises OSError."""
    ip = _attribute(_CTA_IP_V4_SRC, socket.inet_aton(address))
    tuple_ip = _attribute(_CTA_TUPLE_IP | _NESTED, ip)
    _delete(_attribute(_CTA_TUPLE_ORIG | _NESTED, tuple_ip), original=_FLAG_IP_SRC)
    _delete(_attribute(_CTA_TUPLE_REPLY | _NESTED, tuple_ip), reply=_FLAG_IP_SRC)


def forget_udp_port(port: int) -> None:
    """Drop UDP entries towards ``port``: else a client that sent before the port was published
    keeps missing it for as long as it goes on sending. Raises OSError."""
    proto = _attribute(_CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    proto += _attribute(_CTA_PROTO_DST_PORT, struct.pack("!H", port))
    body = _attribute(_CTA_TUPLE_PROTO | _NESTED, proto)
    _delete(_attribute(_CTA_TUPLE_ORIG | _NESTED, body), original=_FLAG_PROTO_NUM | _FLAG_DST_PORT)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _delete(match: bytes, *, original: int = 0, reply: int = 0) -> None:
    chosen = _attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", original))
    chosen += _attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", reply))
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += match + _attribute(_CTA_FILTER | _NESTED, chosen)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as channel:
        channel.send(struct.pack("=IHHII", 16 + len(body), _DELETE, _REQUEST_ACK, 1, 0) + body)
        number = -struct.unpack_from("=i", channel.recv(65536), 16)[0]
    if number not in (0, errno.ENOENT):
        raise OSError(number, f"conntrack: {os.strerror(number)}")
