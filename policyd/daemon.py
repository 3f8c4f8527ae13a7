"""The daemon: puts the parts together, and owns the reactor, the clock, signals, start, reload and stop."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from twisted.internet import main as twisted_main
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater, react
from twisted.python.failure import Failure

from policyd import __version__, paths
from policyd.config import Config, ConfigError, changes, needs_restart, read_config
from policyd.control import Api, control_site
from policyd.desk import Desk
from policyd.listening import CannotListenError, endpoint_problem, hold_alone, listen, listen_unix, make_folder
from policyd.locks import utc
from policyd.log import EventLog, start_logging
from policyd.policy import Policy
from policyd.server import PolicyFactory
from policyd.systemd import Notifier

EX_CANNOT_START = 1
STDERR = 2

TICK = 1.0
"""Seconds between two looks at what time has brought: locks that are over, repeated warnings, the watchdog."""

DRAIN = 1.5
"""Seconds for which requests that have begun are waited for at the end."""

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


def boot_time() -> float:
    """Return seconds of a clock that never steps back and counts suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def to_wall(now: float) -> float:
    """Return a time of `boot_time` as seconds since the epoch."""
    return time.time() - (boot_time() - now)


class Reactor(EPollReactor):
    """Twisted's reactor, whose timers do not stall when the wall clock steps back."""

    seconds = staticmethod(boot_time)


class Daemon:
    """All parts of one policyd, joined."""

    def __init__(self, reactor: Reactor, config: Config, config_file: Path | None) -> None:
        self._reactor = reactor
        self._config = config
        self._running = config
        """The config at the start: what takes a restart to change is still its."""
        self._config_file = config_file
        self._log = EventLog(boot_time)
        self._notifier = Notifier()
        self._policy = Policy(config.rules(), self._log.report, to_wall)
        self._factory = PolicyFactory(self._policy, reactor, self._log.report)
        self._ports: list[IListeningPort] = []
        self._config_errors = ""
        self._needs_restart: list[str] = []
        self._stopping = False
        desk = Desk(self._policy, to_wall, boot_time(), self._problems)
        self._site = control_site(Api(desk, self.reload), boot_time, self._bug)

    async def run(self) -> None:
        """Listen, answer, and end when the reactor is told to.

        Raises CannotListenError.
        """
        self._log.report("start", {"version": __version__, "config": self._config_file or "built in"})
        control = self._control_socket()
        self._alone = hold_alone(control)
        self._ports.append(listen_unix(self._reactor, str(control), self._site))
        for description in self._config.listen:
            self._ports.append(await listen(self._reactor, description, self._factory))
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._on_sighup))
        gc.freeze()
        running: Deferred[None] = Deferred()
        self._reactor.callWhenRunning(running.callback, None)
        await running  # before that, SIGTERM would kill instead of stop
        self._tick()
        self._log.report("ready", {"listen": " ".join(self._config.listen), "control": control})
        self._notifier.ready(self._state())
        await Deferred()

    def reload(self, by: str) -> tuple[list[str], list[str]]:
        """Read the config anew; return what changed, and what takes a restart to change.

        Raises ConfigError, and changes nothing, where the config has errors.
        """
        self._notifier.reloading()
        try:
            self._config_file = self._config_file or default_config()
            config = load_config(self._config_file)
            changed, self._needs_restart = changes(self._config, config), needs_restart(self._running, config)
            self._policy.accounts.rules = config.rules()
            self._config = config
            self._config_errors = ""
        except ConfigError as error:
            self._config_errors = (
                f"the config has errors since {utc(time.time())}, and the old one is in force: {error.problems[0]}"
            )
            for problem in error.problems:
                self._log.report("reload-failed", {"by": by, "problem": problem})
            raise
        finally:
            self._notifier.ready(self._state())
        told = {"by": by, "changed": "; ".join(changed) or "nothing"}
        self._log.report("reload", {**told, "needs_restart": " ".join(self._needs_restart) or None})
        return changed, self._needs_restart

    def _control_socket(self) -> Path:
        if self._config.control is not None:
            return Path(self._config.control)
        folder = paths.runtime_folder()
        make_folder(folder, private=folder != paths.SYSTEM_RUNTIME and "RUNTIME_DIRECTORY" not in os.environ)
        return folder / paths.CONTROL_SOCKET

    def _on_sighup(self) -> None:
        try:
            self.reload("SIGHUP")
        except ConfigError:
            return  # logged, and shown in status

    def _problems(self) -> list[str]:
        found = [self._config_errors] if self._config_errors else []
        found += [f"{key} has changed in the config, and takes a restart to change" for key in self._needs_restart]
        if errors := self._policy.tally.internal_errors:
            found.append(f"internal errors, {errors} so far: see the log")
        return found

    def _state(self) -> str:
        requests, accounts = self._policy.tally.requests.total(), self._policy.accounts
        return f"{requests} requests, {len(accounts)} accounts, {len(accounts.locked)} locked"

    def _tick(self) -> None:
        """Look at what time has brought, and tell the watchdog that all is well if it is."""
        if self._stopping:
            return
        wait = TICK if self._notifier.watchdog is None else min(TICK, self._notifier.watchdog / 2)
        self._reactor.callLater(wait, self._tick)
        try:
            self._policy.locks.expire(boot_time())
            self._log.sum_up()
        except Exception:  # the next tick must come, whatever is wrong with this one
            self._bug()
            return
        self._notifier.alive(self._state())

    def _bug(self) -> None:
        """Tell of an exception that should not have been."""
        self._policy.tally.internal_errors += 1
        self._log.report("internal-error", {"traceback": Failure().getTraceback()})

    async def _drain(self) -> None:
        """Take no more connections, answer what has begun, and let the clients go."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        ends = boot_time() + DRAIN
        while boot_time() < ends:
            await deferLater(self._reactor, 0.05)
            for connection in list(self._factory.connections):
                if connection.idle:
                    connection.close()
            if not self._factory.connections:
                return
        for connection in list(self._factory.connections):
            connection.abort()

    def _stop(self) -> Deferred[None]:
        self._stopping = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the end has begun; it takes DRAIN at most
        self._notifier.stopping()
        self._log.sum_up(at_end=True)
        self._log.report("stop", {"requests": self._policy.tally.requests.total()})
        return Deferred.fromCoroutine(self._drain())


def load_config(file: Path | None) -> Config:
    """Return the config of `file`, or where there is none, the house rules.

    Raises ConfigError.
    """
    return Config() if file is None else read_config(file, endpoint_problem)


def default_config() -> Path | None:
    """Return the default config file unless it is not there; one that cannot be looked at is there."""
    try:
        paths.CONFIG.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return paths.CONFIG
    return paths.CONFIG


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
    react(_run, (config, file), _reactor=reactor)


async def _run(reactor: Reactor, config: Config, config_file: Path | None) -> None:
    try:
        await Daemon(reactor, config, config_file).run()
    except CannotListenError as error:
        print(f"policyd: {error}", file=sys.stderr)
        raise SystemExit(EX_CANNOT_START) from error


if __name__ == "__main__":
    main()
