"""A real daemon, its database and policyctl: limits of clients, senders and bytes as people meet them."""

from __future__ import annotations

from pathlib import Path

from tests.daemon import Policyd, Value

ANNA = "anna@example.com"

CONFIG = """\
database: {database}
limits:
  clients-per-hour:
    count: clients
    per: 1h
    max: 3
    action: "REJECT 5.7.1 Account {{account}} is locked: used from over {{max}} addresses in {{per}}"
    lock: until-unlocked
  senders-per-hour: {{count: senders, per: 1h, max: {senders}, action: "REJECT 5.7.1 {{count}} senders"}}
  bytes-per-day: {{count: bytes, per: 1d, max: 5M, action: "452 4.3.1 {{count}} of {{max}}"}}
overrides:
  - {{accounts: ["free@*"], limits: {{clients-per-hour: unlimited, bytes-per-day: 1G}}}}
"""


def config(folder: Path, *, senders: int = 5) -> str:
    """Return a config with a database in a folder."""
    return CONFIG.format(database=folder / "policyd.sqlite", senders=senders)


def send(daemon: Policyd, client: str, sender: Value = ANNA, size: int = 0, account: str = ANNA) -> str:
    """Send a message, and return the answer at DATA."""
    return daemon.message(account, client_address=client, sender=sender, size=size)[-1]


def test_what_was_seen_is_known_after_a_restart(tmp_path: Path) -> None:
    """Known clients go on, one too many locks, and the desk reads why."""
    with Policyd(config(tmp_path)) as daemon:
        for number in (1, 2, 3):
            assert send(daemon, f"192.0.2.{number}", f"s{number}@example.com", 1024**2) == "DUNNO"
        before = daemon.ctl_json("status", ANNA)["limits"]
        daemon.restart()
        after = daemon.ctl_json("status", ANNA)["limits"]
        assert [limit["count"] for limit in after] == [limit["count"] for limit in before] == [3, 3, 3 * 1024**2]
        for one, other in zip(before, after, strict=True):
            assert 0 < other["resets_in"] <= one["resets_in"] + 0.01
        assert send(daemon, "192.0.2.2", "S2@example.com", 1024**2) == "DUNNO"
        reason = "used from over 3 addresses in 1h"
        assert send(daemon, "192.0.2.4") == f"REJECT 5.7.1 Account {ANNA} is locked: {reason}"
        shown = daemon.ctl("status", ANNA).stdout
        assert f"{ANNA} is LOCKED until unlocked: more than 3 clients in 1h\n" in shown
        assert "  by         policyd, limit clients-per-hour at 4\n" in shown
        assert "  bytes-per-day     4M of 5M in 1d   80%" in shown
        assert 'reason="more than 3 clients in 1h"' in daemon.stderr


def test_the_list_of_accounts_is_sorted_by_clients(tmp_path: Path) -> None:
    """Whose password has got about is seen at one glance."""
    with Policyd(config(tmp_path)) as daemon:
        for number in range(5):
            send(daemon, f"2001:db8:0:{number}::1", size=1024**2, account="free@example.com")
        for _ in range(3):
            send(daemon, "192.0.2.1", size=1024**2)
        assert "452 4.3.1 5.5M of 5M" in send(daemon, "192.0.2.1", size=5 * 1024**2 // 2)
        lines = daemon.ctl("accounts", "--sort", "clients").stdout.splitlines()
        assert [line.split() for line in lines] == [
            ["account", "state", "clients-per-hour", "senders-per-hour", "bytes-per-day", "refused", "held"],
            ["free@example.com", "free", "5", "(unlimited)", "1/5", "20%", "5M/1G", "0%", "0", "0"],
            [ANNA, "free", "1/3", "33%", "1/5", "20%", "3M/5M", "60%", "1", "0"],
        ]
        found = daemon.ctl_json("accounts", "--sort", "bytes", "-n", "1")
        assert [(each["account"], each["limits"][2]["count"]) for each in found] == [("free@example.com", 5 * 1024**2)]


def test_a_reload_changes_a_maximum_and_keeps_what_was_seen(tmp_path: Path) -> None:
    """Those in the window may go on; the config is refused where more is asked than can be remembered."""
    with Policyd(config(tmp_path)) as daemon:
        for number in range(4):
            assert send(daemon, "192.0.2.1", f"s{number}@example.com") == "DUNNO"
        daemon.write_config(config(tmp_path, senders=1001))
        refused = daemon.ctl("reload")
        assert refused.returncode == 1
        assert "limits.senders-per-hour.max: want a whole number of at most 1000 senders, got 1001" in refused.stderr
        daemon.write_config(config(tmp_path, senders=2).replace("max: 5M", "max: 1G"))
        told = daemon.ctl("reload").stdout.splitlines()
        assert told == ["limits.senders-per-hour.max: 5 -> 2", "limits.bytes-per-day.max: 5M -> 1G"]
        assert send(daemon, "192.0.2.1", "s0@example.com") == "DUNNO"
        assert send(daemon, "192.0.2.1", "new@example.com") == "REJECT 5.7.1 5 senders"


def test_hostile_senders_are_counted_and_shown_nowhere(tmp_path: Path) -> None:
    """Nobody's terminal or log gets to see them, nor does the database where it keeps no history."""
    hostile: list[str | bytes] = ["x" * 10_000, "a\x1b[2Jb", "{account}", "-x", "\u202egpj", b"\xff\xfe"]
    with Policyd(config(tmp_path, senders=len(hostile)) + "history: 0\n") as daemon:
        for sender in hostile:
            assert send(daemon, "192.0.2.1", sender) == "DUNNO"
        assert send(daemon, "192.0.2.1", "x" * 10_001) == "REJECT 5.7.1 7 senders"
        daemon.restart()
        assert send(daemon, "192.0.2.1", hostile[0]) == "DUNNO"
        assert daemon.ctl_json("status", ANNA)["limits"][1]["count"] == len(hostile)
        shown = daemon.ctl("status", ANNA).stdout + daemon.stderr
        assert not any(isinstance(sender, str) and sender in shown for sender in hostile if sender != "-x")
        assert all(b"xxxxxxxx" not in file.read_bytes() for file in tmp_path.iterdir())


def test_an_allowance_of_bytes_is_a_size(tmp_path: Path) -> None:
    """What a person types and reads is a size; more is not allowed than may be a maximum."""
    with Policyd(config(tmp_path)) as daemon:
        told = daemon.ctl("allow", ANNA, "bytes-per-day", "2G", "--for", "2h").stdout.splitlines()
        assert told[0] == f"{ANNA} may send 2G bytes in 1d"
        assert told[1].split() == ["limit", "bytes-per-day,", "5M", "without", "the", "allowance"]
        assert send(daemon, "192.0.2.1", size=1024**3) == "DUNNO"
        shown = daemon.ctl("status", ANNA).stdout
        assert "1G of 2G in 1d" in shown
        assert "  bytes-per-day  2G until " in shown
        assert ", else 5M; by " in shown
        assert " 2G  " in daemon.ctl("allowances").stdout
        assert "it was 2G until " in daemon.ctl("disallow", ANNA).stdout
        for limit, most, why in (
            ("clients-per-hour", "1001", "want a whole number of at most 1000 clients"),
            ("clients-per-hour", "1k", "want a whole number of clients, a size is for bytes"),
            ("bytes-per-day", "1025T", "want a size of at most 1024T"),
        ):
            refused = daemon.ctl("allow", ANNA, limit, most, "--for", "2h")
            assert refused.returncode == 1
            assert f"max: {why}" in refused.stderr
        assert daemon.ctl("allow", ANNA, "bytes-per-day", "0G", "--for", "2h").returncode == 2
