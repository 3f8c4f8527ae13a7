"""The `policyd` command: its options, and the start of the daemon."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from twisted.internet import main as twisted_main
from twisted.internet.task import react

from policyd import __version__, paths
from policyd.config import Config, ConfigError
from policyd.daemon import Daemon, Reactor
from policyd.listening import CannotListenError
from policyd.log import start_logging
from policyd.reloading import default_config, load_config

EX_CANNOT_START = 1
STDERR = 2

SWITCH = 0.0005
"""Seconds for which the thread that reads a config, or the one that writes the database, may go on computing when the
reactor has something to do. Python's own 5 ms come several times in a request: while a config of 900 KB was read, half
of the answers took longer than 4.9 ms with them, and with this longer than 0.8 ms."""

_DESCRIPTION = """\
Postfix policy daemon: counts what each SASL user sends, answers REJECT or HOLD over a limit, and locks hijacked
accounts."""
_EPILOG = f"""\
Without -c it reads {paths.CONFIG} if that is there, and else goes by its house rules on 127.0.0.1:10045:
no message has more than 5000 recipients, and no account sends more than 500 messages in any half hour; one that
tries to is locked until a person unlocks it.

It stays in the foreground and logs to stderr. SIGHUP reads the config anew (as `policyctl reload`), SIGTERM ends it.
Ask it with policyctl.

exit status: 0 ended by SIGTERM; 1 cannot start; 2 wrong usage; 78 the config has errors"""


def main() -> NoReturn:
    """Run the `policyd` command."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        continue  # where stderr is closed, the first socket would be taken for it
    os.close(descriptor)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the config is about to be read anyway
    parser = argparse.ArgumentParser(
        "policyd", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-c", metavar="FILE", dest="config", type=Path, help="the config file")
    parser.add_argument("--check", action="store_true", help="read the config, name all its errors, and exit")
    parser.add_argument("--version", action="version", version=f"policyd {__version__}")
    options = parser.parse_args()
    reactor = Reactor()
    twisted_main.installReactor(reactor)
    file = options.config or default_config()
    try:
        config = load_config(file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(os.EX_CONFIG)
    if options.check:
        print(f"{file or 'what is built in'} is good: {config.summary()}")
        sys.exit(0)
    start_logging()
    sys.setswitchinterval(SWITCH)
    react(_run, (config, file), _reactor=reactor)


async def _run(reactor: Reactor, config: Config, config_file: Path | None) -> None:
    try:
        await Daemon(reactor, config, config_file).run()
    except CannotListenError as error:
        print(f"policyd: {error}", file=sys.stderr)
        raise SystemExit(EX_CANNOT_START) from error


if __name__ == "__main__":
    main()
