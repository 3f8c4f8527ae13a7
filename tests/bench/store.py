"""What the shared table costs in its store: memory per account, and calls a second: `python -m tests.bench.store`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from policyd.limits import HOUSE_RULES
from policyd.shared_calls import SCRIPT, Calls, Target
from tests.stores import Client, Store, running

ACCOUNTS = 10_000
AT_ONCE = 500
CONNECTIONS = 50
CALLS = 100_000
SPREAD = 1000
"""Accounts among which the calls a second are spread."""

_MANY = f"""
local account, instance = ARGV[#ARGV - 1] % {SPREAD}, ARGV[#ARGV]
ARGV[#ARGV], ARGV[#ARGV - 1] = nil, nil
for i, key in ipairs(KEYS) do
  KEYS[i] = string.gsub(key, "ACCOUNT", account)
end
KEYS[#KEYS] = KEYS[#KEYS] .. instance
""".encode()
"""Goes before the script, so that redis-benchmark's random numbers become accounts and instances."""


def used(store: Store) -> int:
    """Return the bytes of memory that the store uses for its data."""
    info = store.cli("INFO", "memory")
    assert isinstance(info, bytes)
    fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    return int(fields["used_memory"]) - int(fields["mem_clients_normal"])


def tell(client: Client, packed: Iterator[bytes]) -> None:
    """Make many calls, some at a time."""
    waiting: list[bytes] = []
    for command in packed:
        waiting.append(command)
        if len(waiting) == AT_ONCE:
            client.say_all(waiting)
            waiting.clear()
    client.say_all(waiting)


def messages(calls: Calls, number: int, *, records: bool) -> Iterator[bytes]:
    """Yield the DATA calls of so many messages of each account."""
    for message in range(number):
        for account in range(ACCOUNTS):
            instance = b"5d7e.6b03cb6b.%x.%x" % (account, message) if records else b""
            yield calls.settle(f"user{account:05}@example.com", HOUSE_RULES, instance, Target(1, 3))


def memory(store: Store) -> None:
    """Print the memory per account: house rules, with one message in the window and with 20."""
    calls, client = Calls("policyd", "mail1"), store.client()
    client.say(calls.evaluated(calls.show("nobody", HOUSE_RULES)))
    for number in (1, 20):
        for records, when in ((True, "in the last 300 s"), (False, "before that")):
            store.forget()
            before = used(store)
            tell(client, messages(calls, number, records=records))
            print(f"{number} messages {when}: {(used(store) - before) / ACCOUNTS:.0f} bytes an account")


def speed(store: Store) -> None:
    """Print the calls a second: DATA by house rules, beside a script that does nothing and is told the same."""
    store.forget()
    text = Calls("policyd", "mail1").settle("ACCOUNT@example.com", HOUSE_RULES, b"5d7e.6b03cb6b.", Target(1, 3))
    words = [word.decode() for word in text.split(b"\r\n")[6::2]]
    for name, script in (("nothing", b"return 0"), ("settle", SCRIPT)) * 2:
        sha = store.cli("SCRIPT", "LOAD", _MANY + script)
        assert isinstance(sha, bytes)
        how = ("-s", store.socket, "-c", str(CONNECTIONS), "-n", str(CALLS), "-r", "100000000", "-q")
        asked = ("EVALSHA", sha.decode(), *words, "__rand_int__", "__rand_int__")
        done = subprocess.run(("redis-benchmark", *how, *asked), check=True, capture_output=True, text=True)
        print(f"{name}:", done.stdout.replace("\r", "\n").splitlines()[-1].rpartition("__: ")[2])


def main() -> int:
    """Measure both."""
    with running() as store:
        memory(store)
        speed(store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
