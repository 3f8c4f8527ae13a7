"""Whether smtpd reaches the policy services that it is to ask: who listens, behind which chroot and which modes."""

from __future__ import annotations

import os.path
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from policyd.ctl_mending import DEFAULT_ACTION, TIMEOUT, Fault, IsOurs, Listening, Mending, gathered
from policyd.ctl_postconf import Node, Postfix, Smtpd, User
from policyd.ctl_restrictions import PolicyService
from policyd.ctl_wiring import LISTS, Hook, policy_services
from policyd.words import shell_word

ENTER, WRITE = 1, 2

MAX_CONNECTED = 20
"""Policy services to which a connection is tried."""

START = "systemctl start policyd.socket policyd"
IN_QUEUE = "policyd/policy.sock"
"""The socket below the queue directory that README.md recommends."""

WHY_NOBODY = "Every request there waits for a second, fails, and gets default_action."
WHY_CHROOT = "A smtpd in a chroot takes the path for one below the queue directory, and finds nobody there."
WHY_CLOSED = "smtpd may not connect, and every request gets default_action."


class World(Protocol):
    """What has to be known that no configuration tells; ctl_postconf.World looks it up."""

    def user(self, name: str) -> User | None:
        """Return a user of this machine."""

    def nodes(self, folder: str, path: str) -> tuple[list[Node], str | None]:
        """Return what lies on the way from a folder to a path, and why the way ends, "" where that cannot be seen."""

    def connects(self, kind: str, where: tuple[str, str] | str) -> str | None:
        """Return None where somebody listens, why not, or "" where that cannot be seen."""


class Sockets:
    """Looks for faults on the way from smtpd to its policy services; `notes` tell what could not be seen."""

    def __init__(
        self,
        postfix: Postfix,
        listening: Listening,
        is_ours: IsOurs,
        mending: Mending,
        world: World,
        *,
        is_running: bool,
    ) -> None:
        self.notes: list[str] = []
        self._postfix = postfix
        self._listening = listening
        self._is_ours = is_ours
        self._mending = mending
        self._world = world
        self._is_running = is_running
        self._user = world.user(postfix.value("mail_owner"))
        self._answers: dict[tuple[str, str], str | None] = {}

    def faults(self, smtpds: Iterable[Smtpd]) -> list[Fault]:
        """Return what is wrong, whatever several services have in common once."""
        return gathered((smtpd, fault) for smtpd in smtpds for hook in _named(smtpd) for fault in self._of(smtpd, hook))

    def _of(self, smtpd: Smtpd, hook: Hook) -> Iterator[Fault]:
        service, parameter = hook.service, hook.parameter
        is_ours = self._is_ours(service)
        if service.kind == "unix":
            if is_ours and (fault := self._unseen(smtpd, hook)):
                yield fault
                return
            folder, path = self._way(smtpd, service)
            nodes, ends = self._world.nodes(folder, path) if is_ours else ([], None)
            if ends == "":
                self._note(f"whether {service.server} can be reached: its folder is closed to you; run this as root")
                return
            if ends is None and is_ours and (fault := self._closed(smtpd, hook, nodes)):
                yield fault
                return
            refused = self._connects(service, os.path.join(folder, path))
        elif service.kind == "inet":
            refused = self._connects(service, "")
        else:
            refused = "it is neither inet: nor unix:"
        if refused == "":
            self._note(f"whether anybody listens on {service.server}: it is closed to you; run this as root")
        elif refused is not None and (self._is_running or not is_ours):
            lines = self._lines(smtpd, hook)
            what = f"nobody listens on {service.server}: {refused}"
            yield self._fault("nobody-listens", smtpd, parameter, what, WHY_NOBODY, lines)

    def _fault(self, code: str, smtpd: Smtpd, parameter: str, what: str, why: str, lines: tuple[str, ...]) -> Fault:
        return Fault(code, what, why, lines, parameter, self._mending.file_of(smtpd, parameter))

    def _note(self, text: str) -> None:
        if (note := f"not seen: {text}") not in self.notes:
            self.notes.append(note)

    def _way(self, smtpd: Smtpd, service: PolicyService) -> tuple[str, str]:
        """Return from where smtpd looks for a socket, and the path that it goes."""
        if smtpd.chroot or not service.path.startswith("/"):
            return self._listening.queue_directory, service.path.lstrip("/")
        return "/", service.path.lstrip("/")

    def _connects(self, service: PolicyService, path: str) -> str | None:
        key = (service.server, path)
        if key not in self._answers and len(self._answers) < MAX_CONNECTED:
            where = path if service.kind == "unix" else service.host_and_port
            self._answers[key] = self._world.connects(service.kind, where)
        return self._answers.get(key)

    def _lines(self, smtpd: Smtpd, hook: Hook) -> tuple[str, ...]:
        """Return what mends a policy service where nobody listens."""
        if self._listening.is_ours(hook.service):
            return (START,)
        if self._is_ours(hook.service):
            new = replace(hook.service, server=self._listening.server())
            lines = self._mending.replace(smtpd, hook.parameter, hook.service, new)
            return ("# if policyd is meant:", *lines)
        return (f"# start what is to listen there, or take it out of {hook.parameter}",)

    def _unseen(self, smtpd: Smtpd, hook: Hook) -> Fault | None:
        """Find a socket that lies where a chroot hides it."""
        path = self._listening.path_of(hook.service)
        if not smtpd.chroot or path is None:
            return None
        inside = self._listening.inside(path)
        if inside is not None and inside == os.path.normpath(hook.service.path.lstrip("/")):
            return None
        options = hook.service.options or {"timeout": TIMEOUT, "default_action": DEFAULT_ACTION}
        new = PolicyService(f"unix:{inside or IN_QUEUE}", options)
        lines = self._mending.replace(smtpd, hook.parameter, hook.service, new)
        if inside is None:
            seen = os.path.join(self._listening.queue_directory, IN_QUEUE)
            lines = (
                f"# let policyd listen below the queue directory: ListenStream={seen} in policyd.socket, or without "
                f'it listen: ["unix:{seen}:mode=660"] in policyd.yaml',
                *lines,
            )
        what = f"{hook.service.server} is {path}, which the chroot {self._listening.queue_directory} hides"
        return self._fault("outside-chroot", smtpd, hook.parameter, what, WHY_CHROOT, lines)

    def _closed(self, smtpd: Smtpd, hook: Hook, nodes: list[Node]) -> Fault | None:
        """Find a folder that the mail owner may not enter, or a socket on which it may not write."""
        if self._user is None:
            self._note(f"whether the user {self._postfix.value('mail_owner')} may connect: there is no such user here")
            return None
        for node in nodes:
            is_folder = stat.S_ISDIR(node.mode)
            if self._user.may(node, ENTER if is_folder else WRITE):
                continue
            word, mode = shell_word(node.path), f"{stat.S_IMODE(node.mode):04o}"
            if is_folder:
                lines: tuple[str, ...] = (f"setfacl -m u:{shell_word(self._user.name)}:x {word}",)
            else:
                lines = (
                    f"chgrp postfix {word} && chmod 660 {word}",
                    "# to last: SocketGroup=postfix and SocketMode=0660 in policyd.socket, or without it :mode=660 in "
                    "listen: of policyd.yaml, in a folder of group postfix with mode 2770",
                )
            kind, to = ("folder", "enter") if is_folder else ("socket", "write to")
            what = f"the {kind} {node.path}, mode {mode}, is not for {self._user.name} to {to}"
            return self._fault("closed-socket", smtpd, hook.parameter, what, WHY_CLOSED, lines)
        return None


def _named(smtpd: Smtpd) -> Collection[Hook]:
    """Return the policy services that a service asks, each once."""
    hooks = [hook for name in LISTS for hook in policy_services(smtpd, name)]
    return {hook.service.written(): hook for hook in hooks}.values()
