"""resolv.conf, hosts and hostname as instances see them."""

from twofold.network import resolv


def test_servers_and_search_pass_through() -> None:
    host = "# comment\nsearch lan example.org\nnameserver 10.0.0.1\noptions edns0\n"
    made = resolv.resolv_conf(host)
    assert made.content == "nameserver 10.0.0.1\nsearch lan example.org\noptions edns0\n"
    assert made.warnings == ()


def test_the_stub_of_systemd_resolved_is_looked_through() -> None:
    made = resolv.resolv_conf(
        "nameserver 127.0.0.53\nsearch lan\n",
        resolved_upstream="nameserver 192.168.1.1\nsearch home\n",
    )
    assert made.content == "nameserver 192.168.1.1\nsearch home\n"
    assert made.warnings == ()


def test_loopback_and_ipv6_servers_are_dropped_with_a_warning() -> None:
    made = resolv.resolv_conf("nameserver 127.0.0.1\nnameserver ::1\nnameserver fe80::1%eth0\n")
    assert "nameserver" not in made.content
    assert "127.0.0.1, ::1, fe80::1%eth0" in made.warnings[0]


def test_one_reachable_server_is_enough_to_stay_quiet() -> None:
    made = resolv.resolv_conf("nameserver 127.0.0.1\nnameserver 9.9.9.9\nnameserver nonsense\n")
    assert made.content == "nameserver 9.9.9.9\n"
    assert made.warnings == ()


def test_an_empty_host_file_warns() -> None:
    assert "none" in resolv.resolv_conf("").warnings[0]


def test_at_most_three_servers() -> None:
    host = "".join(f"nameserver 10.0.0.{number}\n" for number in range(1, 6))
    assert resolv.resolv_conf(host).content.count("nameserver") == 3


def test_hosts_names_the_instance() -> None:
    assert "10.209.0.5\tweb.lan web\n" in resolv.hosts("web.lan", "10.209.0.5")
    assert "127.0.1.1\tweb\n" in resolv.hosts("web", "")


def test_without_network_there_is_no_resolver() -> None:
    assert set(resolv.instance_files("web", "", "x")) == {"/etc/hosts", "/etc/hostname"}
    assert resolv.instance_files("web", "10.209.0.5", "x")["/etc/resolv.conf"] == "x"
