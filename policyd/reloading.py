"""Reading the config, and reading it anew while requests are answered: in a thread, for a large one takes seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from policyd import paths
from policyd.config import Config, ConfigError, changes, read_config
from policyd.limits import Rules
from policyd.listening import endpoint_problem
from policyd.locks import Report, utc
from policyd.supplies import SUPPLIES

LINES = 50
"""Problems of a config that are logged in one turn of the reactor: a large one may have thousands."""

T = TypeVar("T")


class Reading(NamedTuple):
    """A config that was read anew."""

    config: Config
    rules: Rules
    changed: list[str]


class Reloaded(NamedTuple):
    """What a reload came to."""

    changed: list[str]
    needs_restart: list[str]
    """What takes a restart to change."""


class _Order(NamedTuple):
    by: str
    uid: int | None
    done: Deferred[Reloaded]


class Reloading:
    """Carries out the orders to reload, one reading at a time; `problem` says in a sentence why the last one failed.

    An order that comes while the config is being read waits for the next reading, with all others that wait: what it is
    answered is about the file as it was after the order came.

    `begin` is called before each reading, and returns the function that reads; `in_thread` has that called in another
    thread; `apply` puts into force what was read; `end` is called after each reading, whatever came of it. `wall` tells
    the time in seconds since the epoch.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        begin: Callable[[], Callable[[], Reading]],
        in_thread: Callable[[Callable[[], Reading]], Deferred[Reading]],
        apply: Callable[[Reading], Reloaded],
        end: Callable[[], None],
        report: Report,
        wall: Callable[[], float],
    ) -> None:
        self._reactor = reactor
        self._begin = begin
        self._in_thread = in_thread
        self._apply = apply
        self._end = end
        self._report = report
        self._wall = wall
        self.problem = ""
        self._waiting: list[_Order] = []
        self._working = False

    def order(self, by: str, uid: int | None = None) -> Deferred[Reloaded]:
        """Have the config read anew; return what fires when it is in force.

        It fails with ConfigError, and nothing is changed, where the config has errors.
        """
        done: Deferred[Reloaded] = Deferred()
        self._waiting.append(_Order(by, uid, done))
        if not self._working:
            self._working = True
            Deferred.fromCoroutine(self._work())
        return done

    async def _work(self) -> None:
        while self._waiting:
            orders, self._waiting = self._waiting, []
            outcome = await self._outcome(orders)
            for order in orders:
                order.done.callback(outcome)
        self._working = False

    async def _outcome(self, orders: list[_Order]) -> Reloaded | Failure:
        """Read the config, put it into force, and say so in the log once for each order."""
        try:
            reloaded = self._apply(await self._in_thread(self._begin()))
            self.problem = ""
            for order in orders:
                told = {"by": order.by, "uid": order.uid, "changed": "; ".join(reloaded.changed) or "nothing"}
                self._report("reload", {**told, "needs_restart": " ".join(reloaded.needs_restart) or None})
        except ConfigError as error:
            since = utc(self._wall())
            self.problem = f"the config has errors since {since}, and the old one is in force: {error.problems[0]}"
            for order in orders:
                for number, problem in enumerate(error.problems, 1):
                    self._report("reload-failed", {"by": order.by, "uid": order.uid, "problem": problem})
                    if number % LINES == 0:
                        await deferLater(self._reactor, 0)
            return Failure()
        except Exception:  # whoever has given an order has to know, whatever it is
            return Failure()
        else:
            return reloaded
        finally:
            self._end()


def in_thread(reactor: IReactorFromThreads, work: Callable[[], T]) -> Deferred[T]:
    """Call a function in a thread of its own, for which the end of the daemon does not wait; return what it returns."""
    done: Deferred[T] = Deferred()

    def run() -> None:
        outcome: T | Failure
        try:
            outcome = work()
        except Exception:  # it is raised where it is waited for
            outcome = Failure()
        reactor.callFromThread(done.callback, outcome)

    threading.Thread(target=run, name="reload", daemon=True).start()
    return done


def read_anew(file: Path | None, old: Config) -> Reading:
    """Read the config anew, and do all that takes long; this is another thread.

    Raises ConfigError.
    """
    try:
        config = load_config(file)
    except ConfigError as error:
        problems = error.problems
    else:
        return Reading(config, config.rules(), changes(old, config))
    raise ConfigError(problems)  # without all that led to it: to free the nodes of a whole file takes long as well


def load_config(file: Path | None) -> Config:
    """Return the config of `file`, or where there is none, the house rules.

    Raises ConfigError.
    """
    return Config() if file is None else read_config(file, endpoint_problem, SUPPLIES)


def default_config() -> Path | None:
    """Return the default config file unless it is not there; one that cannot be looked at is there."""
    try:
        paths.CONFIG.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return paths.CONFIG
    return paths.CONFIG
