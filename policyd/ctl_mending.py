"""The lines that mend Postfix's configuration: what a person can paste into a root shell.

Nothing here is ever run by policyd.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from policyd.ctl_postconf import Postfix, Smtpd
from policyd.ctl_restrictions import ASK, WARN, PolicyService, alone, expand, joined, parse_policy_service, words
from policyd.endpoints import parse_endpoint
from policyd.words import shell_word

TIMEOUT = "10s"
DEFAULT_ACTION = "DUNNO"
"""What README.md recommends: a request waits no longer for a daemon that hangs, and mail flows while there is none."""

POLICYD = "policyd"
"""The parameter of main.cf in which README.md keeps the policy service."""

IsOurs = Callable[[PolicyService], bool]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, where, why it matters, and what mends it."""

    code: str
    what: str
    why: str
    mend: tuple[str, ...]
    parameter: str | None = None
    """The parameter of Postfix's that is wrong."""
    file: str | None = None
    """Where that is said: `main.cf`, which includes what is built in, or `master.cf`."""
    services: tuple[str, ...] = ()
    """The services of master.cf that it concerns."""


def gathered(found: Iterable[tuple[Smtpd, Fault]]) -> list[Fault]:
    """Return each fault once, with all the services that it was found for; what has the same cure is the same."""
    faults: dict[tuple[str, str, tuple[str, ...]], Fault] = {}
    services: dict[tuple[str, str, tuple[str, ...]], dict[str, None]] = {}
    for smtpd, fault in found:
        key = (fault.code, fault.what, fault.mend)
        faults.setdefault(key, fault)
        services.setdefault(key, {})[smtpd.name] = None
    return [replace(fault, services=tuple(services[key])) for key, fault in faults.items()]


class Listening:
    """Where policyd listens, in Twisted's endpoint strings, and which policy services of Postfix's mean that."""

    def __init__(self, endpoints: Iterable[str], queue_directory: str, real: Callable[[str], str]) -> None:
        self.queue_directory = os.path.normpath(queue_directory or "/")
        self._real = real
        self.ports: list[tuple[str, str]] = []
        """Interfaces, "" for all, and ports."""
        self.paths: list[str] = []
        for endpoint in map(parse_endpoint, endpoints):
            if endpoint.kind in ("tcp", "tcp6"):
                interface = (*endpoint.unnamed[1:], endpoint.named.get("interface", ""))[0].strip("[]")
                self.ports.append(("" if interface in ("0.0.0.0", "::") else interface, endpoint.first("port")))  # noqa: S104
            elif endpoint.kind == "unix":
                self.paths.append(endpoint.first("address"))

    def is_ours(self, service: PolicyService) -> bool:
        """Return whether a policy service is policyd, wherever a chroot may make of its path another one."""
        if service.kind == "unix":
            return self.path_of(service) is not None
        host, port = service.host_and_port
        return any(port == own and _same_host(host, interface) for interface, own in self.ports)

    def path_of(self, service: PolicyService) -> str | None:
        """Return the path on which policyd listens for a policy service, None where it does not."""
        inside = os.path.join(self.queue_directory, service.path.lstrip("/"))
        meant = {self._real(os.path.normpath(path)) for path in (inside, service.path) if path.startswith("/")}
        return next((path for path in self.paths if self._real(os.path.normpath(path)) in meant), None)

    def inside(self, path: str) -> str | None:
        """Return a path as it is relative to the queue directory, None where it lies outside."""
        queue = self._real(self.queue_directory).rstrip("/") + "/"
        real = self._real(os.path.normpath(path))
        return real[len(queue) :] if real.startswith(queue) else None

    def server(self) -> str:
        """Return where policyd listens as Postfix names it; every smtpd, in a chroot too, can ask there if any can."""
        inside = [relative for path in self.paths if (relative := self.inside(path))]
        if self.ports:
            host, port = self.ports[0]
            host = host or "127.0.0.1"
            return f"inet:{f'[{host}]' if ':' in host else host}:{port}"
        return f"unix:{(inside or self.paths or ['policyd/policy.sock'])[0]}"


class Mending:
    """Composes the lines that mend one Postfix; `options` of postconf's stand in each."""

    def __init__(self, postfix: Postfix, listening: Listening, is_ours: IsOurs, options: str = "") -> None:
        self._postfix = postfix
        self._listening = listening
        self._is_ours = is_ours
        self._postconf = f"postconf {options}".strip()

    def main(self, name: str, value: str) -> str:
        """Return the line that sets a parameter of main.cf."""
        return f"{self._postconf} -e {shell_word(f'{name} = {value}')}"

    def parameter(self, smtpd: Smtpd, name: str, value: str) -> tuple[str, ...]:
        """Return the lines that give a parameter a value without a blank, where it is set for a service."""
        if name in smtpd.overrides:
            return (f"{self._postconf} -P {shell_word(f'{smtpd.name}/{name}={value}')}",)
        return (self.main(name, value),)

    def file_of(self, smtpd: Smtpd, name: str) -> str:
        """Return the file in which a parameter has to be changed for a service."""
        return "master.cf" if self._holder(smtpd, name) in smtpd.overrides else "main.cf"

    def put_first(self, smtpd: Smtpd, name: str) -> tuple[str, ...]:
        """Return the lines that put policyd at the head of a restriction list, and take it away further on."""
        word, before = self._word(smtpd)
        rest = joined(self._without(smtpd, words(smtpd.raw(self._holder(smtpd, name))), keep=0))
        return (*before, *self._set(smtpd, name, f"{ASK} {word}" + (f", {rest}" if rest else "")))

    def take_out(self, smtpd: Smtpd, name: str, keep: int = 0) -> tuple[str, ...]:
        """Return the lines that take policyd out of a list, but for the first `keep` times."""
        before = words(smtpd.raw(self._holder(smtpd, name)))
        after = self._without(smtpd, before, keep)
        if after == before:
            return (f"# in {self.file_of(smtpd, name)}, take {ASK} for policyd out of what {name} names",)
        return self._set(smtpd, name, joined(after))

    def unwarned(self, smtpd: Smtpd, name: str) -> tuple[str, ...]:
        """Return the lines that take warn_if_reject from before policyd."""
        before = words(smtpd.raw(self._holder(smtpd, name)))
        ours = [i for i, word in enumerate(before) if self._asks(smtpd, before, i) and i and word]
        after = [word for i, word in enumerate(before) if not (i + 1 in ours and word.lower() == WARN)]
        if after == before:
            return (f"# in {self.file_of(smtpd, name)}, take {WARN} from before policyd in what {name} names",)
        return self._set(smtpd, name, joined(after))

    def replace(self, smtpd: Smtpd, name: str, old: PolicyService, new: PolicyService) -> tuple[str, ...]:
        """Return the lines that write a policy service in another way where a list names it."""
        before = words(smtpd.raw(self._holder(smtpd, name)))
        for i, word in enumerate(before):
            if i and before[i - 1].lower() == ASK and self._meaning(smtpd, word) == old:
                if (kept := alone(word)) and kept not in smtpd.overrides:
                    return (self.main(kept, new.written()),)
                return self._set(smtpd, name, joined([*before[:i], new.written(), *before[i + 1 :]]))
        return (f"# write {ASK} {new.written()} where {name} has {ASK} {old.written()}",)

    def _word(self, smtpd: Smtpd) -> tuple[str, tuple[str, ...]]:
        """Return the argument of check_policy_service for policyd, and the lines that have to be there before."""
        for parameter in (POLICYD, *self._postfix.given):
            if parameter in self._postfix.given and self._is_ours(self._meaning(smtpd, f"${parameter}")):
                return f"${parameter}", ()
        service = PolicyService(self._listening.server(), {"timeout": TIMEOUT, "default_action": DEFAULT_ACTION})
        if POLICYD in self._postfix.main:
            return service.written(), ()
        return f"${POLICYD}", (self.main(POLICYD, service.written()),)

    def _meaning(self, smtpd: Smtpd, word: str) -> PolicyService:
        return parse_policy_service(expand(word, smtpd.raw).strip())

    def _asks(self, smtpd: Smtpd, listed: list[str], i: int) -> bool:
        """Return whether policyd is asked at this place of a list."""
        asked = listed[i].lower() == ASK and i + 1 < len(listed)
        return asked and self._is_ours(self._meaning(smtpd, listed[i + 1]))

    def _without(self, smtpd: Smtpd, listed: list[str], keep: int) -> list[str]:
        """Return a list without policyd, but for the first `keep` times."""
        gone: set[int] = set()
        for i in [i for i in range(len(listed)) if self._asks(smtpd, listed, i)][keep:]:
            gone |= {i, i + 1} | ({i - 1} if i and listed[i - 1].lower() == WARN else set())
        return [word for i, word in enumerate(listed) if i not in gone]

    def _holder(self, smtpd: Smtpd, name: str) -> str:
        """Return the parameter in which a list is really written: a list may be nothing but `$another`."""
        for _ in range(10):
            if not (other := alone(smtpd.raw(name))):
                break
            name = other
        return name

    def _set(self, smtpd: Smtpd, name: str, value: str) -> tuple[str, ...]:
        """Return the lines that set a list for a service that logs in, and leave alone the services that do not."""
        holder = self._holder(smtpd, name)
        shared = holder == name and any(
            not other.is_on("smtpd_sasl_auth_enable") and name not in other.overrides for other in self._postfix.smtpds
        )
        if holder not in smtpd.overrides and not shared:
            return (self.main(holder, value),)
        if not re.search(r"[\s{}]", value):
            return (f"{self._postconf} -P {shell_word(f'{smtpd.name}/{holder}={value}')}",)
        own = "mua_" + name.removeprefix("smtpd_")
        if self._postfix.main.get(own, value) != value:
            own = re.sub(r"\W", "_", smtpd.name.split("/")[0]) + "_" + name.removeprefix("smtpd_")
        return (self.main(own, value), f"{self._postconf} -P {shell_word(f'{smtpd.name}/{holder}=${own}')}")


def _same_host(host: str, interface: str) -> bool:
    host, interface = host.lower(), interface.lower()
    names = {"localhost", "ip6-localhost"}
    return not interface or host == interface or (host in names and interface in names | {"127.0.0.1", "::1"})
