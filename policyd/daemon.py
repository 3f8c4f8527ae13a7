"""The daemon: puts the parts together, and owns the reactor, the clock, signals, start, reload and stop."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from policyd import __version__, compiled, paths
from policyd.accepting import Accepting, raise_limit
from policyd.activation import endpoint_of, ignored, listen_on, passed_sockets, started_with
from policyd.archive import Archive
from policyd.calls import Api
from policyd.config import Config, ConfigError, needs_restart
from policyd.control import control_site
from policyd.database import NewerDatabaseError
from policyd.desk import Desk
from policyd.facts import Facts
from policyd.history import Retention
from policyd.listening import (
    AlreadyRunningError,
    CannotListenError,
    hold_alone,
    listen,
    listen_unix,
    make_folder,
)
from policyd.log import EventLog
from policyd.notices import Notices
from policyd.notifying import Notifying
from policyd.policy import Policy
from policyd.prompt import PromptReactor, make_prompt
from policyd.relay import look_up_apart
from policyd.reloading import Reading, Reloaded, Reloading, default_config, in_thread, read_anew
from policyd.server import PolicyFactory
from policyd.storage import Storage
from policyd.systemd import Notifier, boot_id

if TYPE_CHECKING:
    from policyd.cluster import Cluster

NO_DATABASE = "none"

TICK = 1.0
"""Seconds between two looks at what time has brought: locks that are over, repeated warnings, the watchdog."""

NEVER = 10**9
"""Collections of young garbage before one of all objects: to look through a million accounts takes two seconds, and
what lives long here holds no cycles."""

DRAIN = 1.2
"""Seconds for which requests that have begun are waited for at the end."""

FRESH = 0.5
"""Seconds for which a new connection's first request is waited for at the end: Postfix tries two connections, and where
it has lost the first to the end of a daemon, this may be its last."""


boot_time = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Returns seconds of a clock that never steps back and counts suspend."""


def to_wall(now: float) -> float:
    """Return a time of `boot_time` as seconds since the epoch."""
    return time.time() - (boot_time() - now)


class Reactor(PromptReactor):
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
        self._notices = Notices(self._log.report, lambda: secrets.token_hex(16), to_wall)
        self._policy = Policy(config.rules(), self._report, to_wall)
        self._policy.accounts.size = config.max_accounts
        self._storage = self._store()
        self._archive = Archive(self._policy, self._storage, Retention(config.history, config.history_rows))
        durable = self._storage.durable if self._storage else lambda: None
        self._cluster = self._join_cluster(durable)
        policy, report = self._policy, self._log.report
        self._factory = self._cluster.factory if self._cluster else PolicyFactory(policy, reactor, report, durable)
        self._notifying = Notifying(
            reactor, self._notices, partial(in_thread, reactor), durable, self._bug, time.time, socket.gethostname()
        )
        look_up_apart(reactor)
        self._notifying.apply(config.notify)
        self._ports: list[IListeningPort] = []
        self._accepting: Accepting | None = None
        self._passed: list[socket.socket] = []
        """The sockets of systemd's, if it has passed any: open to the end, so that who waits in their queues stays."""
        self._reloading = Reloading(
            reactor,
            self._begin_reload,
            partial(in_thread, reactor),
            self._put_into_force,
            self._end_reload,
            self._log.report,
            time.time,
        )
        self._needs_restart: list[str] = []
        self._ending: IDelayedCall | None = None
        """The next turn that is to end allowances, while there are many."""
        self._stopping = False
        store = "sqlite" if self._storage else "memory"
        self._listening: list[str] = []
        desk = Desk(self._policy, to_wall, boot_time(), self._problems, store, lambda: self._listening)
        make_api = self._cluster.api if self._cluster else Api
        api = make_api(desk, self._reloading.order, self._archive.find, self._notifying)
        self._site = control_site(api, reactor, self._bug, durable)

    async def run(self) -> None:
        """Listen, answer, and end when the reactor is told to.

        Raises CannotListenError.
        """
        about = {"version": __version__, "compiled": "no" if compiled.answer is None else "yes"}
        self._log.report("start", {**about, "config": self._config_file or "built in"})
        control = self._control_socket()
        self._alone = [hold_alone(control)]
        self._open_storage()
        if self._cluster:
            self._cluster.start()
        self._ports.append(listen_unix(self._reactor, str(control), self._site))
        self._listening = await self._listen()
        self._bound_connections()
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._on_sighup))
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], NEVER)
        running: Deferred[None] = Deferred()
        self._reactor.callWhenRunning(running.callback, None)
        await running  # before that, SIGTERM would kill instead of stop
        self._tick()
        self._log.report("ready", {"listen": " ".join(self._listening), "control": control})
        self._notifier.ready(self._state())
        await Deferred()

    def _begin_reload(self) -> Callable[[], Reading]:
        self._config_file = self._config_file or default_config()
        if not self._stopping:
            self._notifier.reloading()
        return partial(read_anew, self._config_file, self._config)

    def _put_into_force(self, reading: Reading) -> Reloaded:
        config = self._config = reading.config
        if self._cluster:
            self._cluster.put_in_force(reading.rules)
        else:
            self._policy.accounts.rules = reading.rules
        self._policy.accounts.size = config.max_accounts
        self._archive.keep(Retention(config.history, config.history_rows))
        self._notifying.apply(config.notify)
        self._needs_restart = self._restart_for(config)
        return Reloaded(reading.changed, self._needs_restart)

    def _end_reload(self) -> None:
        if not self._stopping:
            self._notifier.ready(self._state())

    def _restart_for(self, config: Config) -> list[str]:
        """Return the keys of a config that take a restart to change; on systemd's sockets none changes `listen`."""
        return [key for key in needs_restart(self._running, config) if not (key == "listen" and self._passed)]

    async def _listen(self) -> list[str]:
        """Listen for Postfix on the sockets that systemd has passed, or else where the config says; return where."""
        self._passed = passed_sockets(started_with())
        if self._passed:
            self._ports += [listen_on(self._reactor, passed, self._factory) for passed in self._passed]
            self._tell_ignored()
            return [endpoint_of(passed) for passed in self._passed]
        for description in self._config.listen:
            self._ports.append(await listen(self._reactor, description, self._factory))
        return list(self._config.listen)

    def _bound_connections(self) -> None:
        """Accept no more connections than there are descriptors for."""
        self._accepting = Accepting(self._reactor, self._factory.connections, raise_limit(), self._log.report)
        control, *ports = self._ports
        self._accepting.watch(control, self._site.has_room)
        for port in ports:
            make_prompt(port)
            self._accepting.watch_policy(port)

    def _tell_ignored(self) -> None:
        """Say what the config would have listened on if systemd had not passed sockets."""
        if endpoints := ignored(self._config.listen, map(endpoint_of, self._passed)):
            self._log.report("listen-ignored", {"listen": " ".join(endpoints), "reason": "systemd has passed sockets"})

    def _join_cluster(self, durable: Callable[[], Deferred[None] | None]) -> Cluster | None:
        config = self._config.cluster
        if config is None:
            return None
        from policyd.cluster import Cluster, Parts  # noqa: PLC0415 -- what it takes is not installed everywhere

        policy, reactor, log, host = self._policy, self._reactor, self._log.report, socket.gethostname()
        facts = self._storage.facts if self._storage else Facts()
        return Cluster(config, Parts(policy, reactor, log, self._bug, to_wall, durable, host, self._told, facts))

    def _told(self) -> dict[str, object]:
        """Return what other servers are told of this one."""
        database = str(self._storage.path) if self._storage else NO_DATABASE
        return {"version": __version__, "listen": self._listening, "database": database}

    def _store(self) -> Storage | None:
        if self._config.database == NO_DATABASE:
            return None
        path = Path(self._config.database) if self._config.database else paths.state_folder() / paths.DATABASE
        in_reactor = self._reactor.callFromThread
        storage = Storage(self._policy, path, self._reactor, to_wall, boot_id(), self._log.report, in_reactor)
        storage.notices = self._notices
        return storage

    def _open_storage(self) -> None:
        """Go on from what is stored. Trouble with the disk is no reason not to answer; another daemon is."""
        if self._storage is None:
            return
        path = self._storage.path
        with suppress(CannotListenError):
            if self._config.database is None:
                make_folder(path.parent, private=True)
        try:
            self._alone.append(hold_alone(path))
        except AlreadyRunningError:
            raise
        except CannotListenError:
            pass  # where no file can be made, the database will say so
        try:
            self._storage.open()
        except NewerDatabaseError as error:
            raise CannotListenError(f"the database {path} {error}") from error

    def _control_socket(self) -> Path:
        if self._config.control is not None:
            return Path(self._config.control)
        folder = paths.runtime_folder()
        make_folder(folder, private=folder != paths.SYSTEM_RUNTIME and "RUNTIME_DIRECTORY" not in os.environ)
        return folder / paths.CONTROL_SOCKET

    def _on_sighup(self) -> None:
        Deferred.fromCoroutine(self._reload())

    async def _reload(self) -> None:
        try:
            await self._reloading.order("SIGHUP")
        except ConfigError:
            return  # logged, and shown in status
        except Exception:  # a bug of ours, whatever it is
            self._bug()

    def _problems(self) -> list[str]:
        found = [self._reloading.problem] if self._reloading.problem else []
        if self._accepting and (problem := self._accepting.problem()):
            found.append(problem)
        found += [f"{key} has changed in the config, and takes a restart to change" for key in self._needs_restart]
        if self._storage:
            found += [text for text in (self._storage.problem, self._storage.damage) if text]
        found += self._cluster.problems() if self._cluster else []
        found += self._archive.problems()
        found += self._notices.problems()
        if errors := self._policy.tally.internal_errors:
            found.append(f"internal errors, {errors} so far: see the log")
        return found

    def _report(self, event: str, fields: Mapping[str, object]) -> None:
        """Log what has happened, and tell those who want to know."""
        self._log.report(event, fields)
        if self._cluster and not self._cluster.noted(event, fields):
            return  # another server tells
        self._notices.tell(event, fields, boot_time())

    def _state(self) -> str:
        requests, accounts = self._policy.tally.total, self._policy.accounts
        return f"{requests} requests, {len(accounts)} accounts, {len(accounts.locked)} locked"

    def _tick(self) -> None:
        """Look at what time has brought, and tell the watchdog that all is well if it is."""
        if self._stopping:
            return
        wait = TICK if self._notifier.watchdog is None else min(TICK, self._notifier.watchdog / 2)
        self._reactor.callLater(wait, self._tick)
        try:
            self._policy.locks.expire(boot_time())
            self._end_allowances()
            self._log.sum_up()
            if self._cluster:
                self._cluster.tick()
        except Exception:  # the next tick must come, whatever is wrong with this one
            self._bug()
            return
        self._notifier.alive(self._state())

    def _end_allowances(self) -> None:
        """End the allowances whose time is over: some now, and if there are more, some after each turn."""
        if self._ending is not None and self._ending.active():
            return
        try:
            if self._policy.allowing.expire(boot_time()):
                self._ending = self._reactor.callLater(0, self._end_allowances)
        except Exception:  # the next tick tries again; to end the daemon would not help
            self._bug()

    def _bug(self) -> None:
        """Tell of an exception that should not have been."""
        self._policy.tally.internal_errors += 1
        self._log.report("internal-error", {"traceback": Failure().getTraceback()})

    async def _drain(self) -> None:
        """Take no more connections, answer what has begun, and let the clients go."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        fresh_until, ends = boot_time() + FRESH, boot_time() + DRAIN
        while boot_time() < ends:
            await deferLater(self._reactor, 0.05)
            for connection in list(self._factory.connections):
                if connection.idle and not (connection.fresh and boot_time() < fresh_until):
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
        self._log.report("stop", {"requests": self._policy.tally.total})
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        await self._drain()
        self._notifying.stop()
        if self._cluster:
            self._cluster.stop()
        await deferLater(self._reactor, 0)  # what connections that are gone give back is stored too, the store is told
        if self._storage is not None:
            self._storage.close()
