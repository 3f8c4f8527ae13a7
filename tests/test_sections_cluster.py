"""The `cluster` section: what it means, and what is said of each mistake."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from policyd.config import Config, ConfigError, changes, needs_restart, parse_config
from policyd.sections_cluster import ClusterConfig, Store, parse_store
from policyd.supplies import MAX_SECRET, SUPPLIES, password
from tests.daemon import SHIPPED_CONFIG

URL = "redis://valkey.example.net:6379/0"


def read(text: str) -> ClusterConfig:
    """Return what a section means."""
    found = parse_config(f"cluster: {text}", "policyd.yaml", supplies=SUPPLIES).cluster
    assert found is not None
    return found


def problems(text: str) -> list[str]:
    """Return what is wrong with a section, without the name of the config file."""
    with pytest.raises(ConfigError) as caught:
        parse_config(f"cluster: {text}", "policyd.yaml", supplies=SUPPLIES)
    return [str(problem).removeprefix("policyd.yaml:") for problem in caught.value.problems]


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """Return a file with a password."""
    path = tmp_path / "password"
    path.write_bytes(b"secret\n")
    path.chmod(0o640)
    return path


def test_a_daemon_counts_for_itself_by_default() -> None:
    """Without the section, and where it is empty."""
    assert Config().cluster is parse_config("cluster:", "policyd.yaml").cluster is None


def test_an_address_alone_is_enough() -> None:
    """All else has a default."""
    assert read(URL) == ClusterConfig(Store(URL, "tcp", (("valkey.example.net", 6379),)))
    found = read(URL)
    assert (found.password_file, found.prefix, found.node) == (None, "policyd", None)
    assert (found.patience, found.when_away) == (0.1, "full")


def test_what_the_shipped_config_has_commented_out_is_read() -> None:
    """But for the file that is not here."""
    commented = SHIPPED_CONFIG.read_text().partition("\n# cluster:\n")[2].partition("\n\n")[0]
    text = "cluster:\n" + "".join(line[2:] + "\n" for line in commented.splitlines())
    found = parse_config(text, "policyd.yaml").cluster
    assert found is not None
    assert (found.password_file, found.node) == ("/etc/policyd/valkey.password", "mail1")
    assert replace(found, password_file=None, node=None) == read(URL)


def test_the_long_form_is_read(closed: Path) -> None:
    """With all its keys."""
    found = read(
        f"{{url: rediss://anna@h:6380/1, password_file: {closed}, prefix: a.b:c, node: mail1, patience: 2s,"
        " when_away: share}"
    )
    store = Store("rediss://anna@h:6380/1", "tls", (("h", 6380),), db=1, user="anna")
    assert found == ClusterConfig(store, str(closed), "a.b:c", "mail1", 2.0, "share")
    assert read(f"{{url: '{URL}', patience: 10ms}}").patience == 0.01


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("redis://h", Store("", "tcp", (("h", 6379),))),
        ("redis://192.0.2.1/", Store("", "tcp", (("192.0.2.1", 6379),))),
        ("redis://[2001:db8::1]:7000/15", Store("", "tcp", (("2001:db8::1", 7000),), db=15)),
        ("rediss://h", Store("", "tls", (("h", 6379),))),
        ("redis://us%40er@h", Store("", "tcp", (("h", 6379),), user="us@er")),
        ("redis://@h", Store("", "tcp", (("h", 6379),))),
        ("unix:///run/v.sock", Store("", "unix", path="/run/v.sock")),
        ("unix://anna@/run/v.sock?db=3", Store("", "unix", path="/run/v.sock", db=3, user="anna")),
        ("sentinel://a/m", Store("", "sentinel", (("a", 26379),), master="m")),
        (
            "sentinel://a:1,[::1],c:3/my-master/2",
            Store("", "sentinel", (("a", 1), ("::1", 26379), ("c", 3)), master="my-master", db=2),
        ),
        ("sentinels://a/m/0", Store("", "sentinel-tls", (("a", 26379),), master="m")),
    ],
)
def test_an_address_says_where_the_store_is(url: str, store: Store) -> None:
    """By TCP, TLS, a unix socket, or where Sentinel says."""
    assert parse_store(url) == replace(store, url=url)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("6379", "1: cluster: want an address such as redis://valkey.example.net:6379/0, got 6379"),
        ("[a]", "1: cluster: want an address such as redis://valkey.example.net:6379/0, or a mapping with url, got a"),
        ("{}", "1: cluster.url: missing, want an address such as redis://valkey.example.net:6379/0"),
        ("{url: 5}", "1: cluster.url: want an address such as redis://valkey.example.net:6379/0, got 5"),
        (f"{{ulr: '{URL}'}}", "1: cluster.ulr: unknown key, did you mean 'url'?"),
        (
            "http://h",
            "1: cluster: want an address that begins with redis://, rediss://, unix://, sentinel://, sentinels",
        ),
        ("redis:h", "1: cluster: want an address such as redis://valkey.example.net:6379/0, got 'redis:h'"),
        ("redis://h/0#x", "1: cluster: want an address such as redis://valkey"),
        (f"redis://{'h' * 2000}", "1: cluster: want an address such as redis://valkey"),
        ("redis://", "1: cluster: want a host, or a host and its port such as valkey.example.net:6379, got ''"),
        ("redis://h_h", "1: cluster: want a host, or a host and its port"),
        ("redis://h:0", "1: cluster: want a host, or a host and its port"),
        ("redis://h:65536", "1: cluster: want a host, or a host and its port"),
        ("redis://::1", "1: cluster: want a host, or a host and its port"),
        ("'redis://[::x]'", "1: cluster: want a host, or a host and its port"),
        ("redis://a,b", "1: cluster: want one host: Sentinel looks after several, got 2"),
        ("redis://h/x", "1: cluster: want the number of a database from 0 to 65535, got 'x'"),
        ("redis://h/65536", "1: cluster: want the number of a database from 0 to 65535, got '65536'"),
        ("redis://h?db=1", "1: cluster: want an address that ends with the number of the database, and without a '?'"),
        ("unix://run/v.sock", "1: cluster: want the absolute path of a socket of at most 107 bytes, such as unix:///"),
        ("unix:///", "1: cluster: want the absolute path of a socket"),
        (f"unix:///{'x' * 107}", "1: cluster: want the absolute path of a socket"),
        ("unix:///run/v.sock?x=1", "1: cluster: want nothing but db= behind the '?', got 'x=1'"),
        ("unix:///run/v.sock?db=", "1: cluster: want the number of a database from 0 to 65535, got ''"),
        ("sentinel://a,b", "1: cluster: want what Sentinel calls the store and the number of the database behind its"),
        ("sentinel://a/m/0/0", "1: cluster: want the number of a database from 0 to 65535, got '0/0'"),
        (f"sentinel://{','.join('a' * 21)}/m", "1: cluster: want at most 20 hosts, got 21"),
        (f"{{url: '{URL}', prefix: 'a b'}}", "1: cluster.prefix: want a text of at most 64 letters, digits, '.', '_',"),
        (f"{{url: '{URL}', prefix: 'a{{b}}'}}", "1: cluster.prefix: want a text of at most 64 letters"),
        (f"{{url: '{URL}', node: 'a/b'}}", "1: cluster.node: want a name of at most 253 letters, digits, '.', '_' and"),
        (f"{{url: '{URL}', patience: 100}}", "1: cluster.patience: want a time from 10ms to 5s such as 100ms, got 100"),
        (
            f"{{url: '{URL}', patience: 9ms}}",
            "1: cluster.patience: want a time from 10ms to 5s such as 100ms, got '9ms'",
        ),
        (f"{{url: '{URL}', patience: 6s}}", "1: cluster.patience: want a time from 10ms to 5s such as 100ms, got '6s'"),
        (f"{{url: '{URL}', when_away: half}}", "1: cluster.when_away: want full or share, got 'half'"),
        (f"{{url: '{URL}', password_file: p}}", "1: cluster.password_file: want an absolute path, got 'p'"),
        (f"{{url: '{URL}', password_file: /nowhere/p}}", "cannot be read: /nowhere/p: No such file or directory"),
        ("redis://anna@h", "1: cluster: the user 'anna' has a password: want the long form with password_file"),
        (
            "{url: redis://anna@h}",
            "1: cluster.password_file: missing, want the file with the password of the user 'anna'",
        ),
    ],
)
def test_a_mistake_is_named(text: str, told: str) -> None:
    """With its place, what is wanted, and what is there."""
    assert told in problems(text)[0]


@pytest.mark.parametrize(
    "url", ["redis://anna:hunter2@h", "redis://:hunter2@h/0", "rediss://anna:hunt/er2@h", "redis://anna:a@hunter2@h"]
)
def test_a_password_in_the_address_is_refused_and_not_shown(url: str) -> None:
    """It would be shown by whatever shows the config."""
    (found,) = problems(f"'{url}'")
    assert "hunt" not in found
    (found,) = problems("{url: 'redis://anna:hunter2@h'}")
    assert found == (
        "1: cluster.url: a password in the address can be read by many: write it into a file, and name that in"
        " password_file"
    )


def test_a_password_is_read_from_a_closed_file(closed: Path) -> None:
    """Without its line end."""
    assert password(str(closed)) == b"secret"


@pytest.mark.parametrize(
    ("data", "mode", "told"),
    [
        (b"", 0o600, f"want a password of 1 to {MAX_SECRET} bytes in "),
        (b"x" * (MAX_SECRET + 1), 0o600, f"want a password of 1 to {MAX_SECRET} bytes in "),
        (b"secret", 0o644, "everybody can read or write "),
    ],
)
def test_a_password_file_that_is_none_is_refused(closed: Path, data: bytes, mode: int, told: str) -> None:
    """Empty, too long, or open to all."""
    closed.write_bytes(data)
    closed.chmod(mode)
    (found,) = problems(f"{{url: '{URL}', password_file: {closed}}}")
    assert f"1: cluster.password_file: {told}" in found


def test_what_cannot_be_spoken_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without txredisapi the config says which extra brings it, and whoever has no cluster does not need it."""
    monkeypatch.setitem(sys.modules, "txredisapi", None)
    assert problems(URL) == [
        "1: cluster: a shared store needs policyd[cluster], and txredisapi is not installed: from the source,"
        " /opt/policyd/bin/pip install '.[cluster]'"
    ]
    assert parse_config("observe: true", "policyd.yaml", supplies=SUPPLIES).cluster is None


def test_a_change_is_told_and_takes_a_restart() -> None:
    """Each key with what it was and is."""
    none = Config()
    one = Config(cluster=read(URL))
    two = Config(cluster=read("{url: 'unix:///v', prefix: p, node: n, patience: 1s, when_away: share}"))
    assert changes(none, one) == [f"cluster: none -> {URL}"]
    assert changes(one, none) == [f"cluster: {URL} -> none"]
    assert changes(one, two) == [
        f"cluster.url: {URL} -> unix:///v",
        "cluster.prefix: policyd -> p",
        "cluster.node: the host's name -> n",
        "cluster.patience: 100ms -> 1000ms",
        "cluster.when_away: full -> share",
    ]
    assert changes(one, one) == []
    assert needs_restart(none, one) == needs_restart(one, two) == ["cluster"]
