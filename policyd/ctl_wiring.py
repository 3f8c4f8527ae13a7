"""What is wrong with the way in which Postfix asks policyd: hooks, options, and settings that get in the way.

Pure: a configuration goes in, faults come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from policyd.ctl_mending import DEFAULT_ACTION, TIMEOUT, Fault, IsOurs, Mending, gathered
from policyd.ctl_postconf import Postfix, Smtpd
from policyd.ctl_restrictions import ASK, PolicyService, parse_policy_service, seconds, steps

EARLY = ("smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions")
"""Lists that smtpd_delay_reject=yes puts off until RCPT."""
RELAY, RECIPIENT = "smtpd_relay_restrictions", "smtpd_recipient_restrictions"
DATA, END_OF_DATA = "smtpd_data_restrictions", "smtpd_end_of_data_restrictions"
LISTS = (*EARLY, RELAY, RECIPIENT, DATA, END_OF_DATA)

SHORTEST, LONGEST = 2, 30
"""Seconds: timeouts outside of these are faults."""

LONGEST_PAUSE = 10
"""Seconds of smtpd_policy_service_retry_delay beyond which it is a fault."""

PASSED_BY: Mapping[str, str] = {
    "permit": "all clients",
    "permit_sasl_authenticated": "clients that have logged in",
    "permit_mynetworks": "clients in mynetworks",
    "permit_tls_clientcerts": "clients with a certificate in relay_clientcerts",
    "permit_tls_all_clientcerts": "clients with a trusted certificate",
    "permit_inet_interfaces": "clients on this machine",
    "permit_auth_destination": "recipients in this machine's own domains",
    "permit_mx_backup": "recipients for whom this machine is a backup MX",
}
"""Restrictions at which Postfix leaves a list, and for whom."""
REFUSING = frozenset({"reject", "defer"})

NOT_BEFORE_A_QUEUE_FILTER = frozenset({"HOLD", "DISCARD", "REDIRECT", "FILTER", "BCC", "DELAY"})
"""Actions that Postfix does not take where smtpd_proxy_filter is set."""

WHY: Mapping[str, str] = {
    "no-auth": "No request ever names an account, so nothing is counted and nobody is limited.",
    "no-rcpt-hook": "Only at RCPT can a single recipient be refused; at DATA, policyd can but refuse all of it.",
    "no-data-hook": "Only at DATA is it known whether there is a message, and to whom: where another service asks at "
    "DATA, this one's messages are not counted at all, and where none does, refused recipients are counted too.",
    "behind-permit": "Postfix leaves a list at the first permit that applies: what passes there is never counted, and "
    "an account that is locked can send.",
    "behind-reject": "Postfix leaves the list there, and policyd is never asked.",
    "wrong-list": "That list is for clients and senders: whether it is looked at for each recipient depends on "
    "smtpd_delay_reject, and recipients that are refused afterwards have been counted.",
    "asked-twice": "It is counted once, but each recipient or message costs Postfix a second request.",
    "only-warned": "Postfix logs what policyd refuses, and accepts it.",
    "default-action-unset": "While policyd is away Postfix answers 451 and all mail waits. DUNNO lets it pass, which "
    "suits most providers; who wants it to wait says so: "
    "{ default_action = 451 4.3.5 Server configuration problem }.",
    "default-action-refuses": "While policyd is away mail is refused for good, and goes back to its senders.",
    "default-action-permits": "While policyd is away, what stands behind it in the list is skipped, unlike with DUNNO.",
    "timeout-too-long": "If policyd hangs, each request waits twice as long as this, and clients give up before.",
    "timeout-too-short": "On a busy machine an answer may take as long, and then default_action is taken instead.",
    "one-try": "After each restart of policyd, the first request of every smtpd fails at once and gets default_action.",
    "requests-limited": "Postfix hangs up after so many requests, and has to connect anew for the next one.",
    "long-pause": "After each restart of policyd every smtpd, and its client, waits for so long.",
    "recipient-limit": "Postfix itself answers 452 to the recipients beyond, and policyd is never asked about them.",
    "recipient-rate": "Postfix itself answers 450 to recipients beyond that rate, before policyd's limit is reached.",
    "before-queue-filter": "With a before-queue filter Postfix does not take this action: it logs a warning and lets "
    "the mail pass.",
}


@dataclass(frozen=True, slots=True)
class InForce:
    """What the wiring has to do with a limit."""

    name: str
    per_message: int
    """The recipients that it allows in one message; 0 where it is no such limit, or unlimited."""
    action: str
    """The first word of its action."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A place at which policyd is asked."""

    parameter: str
    service: PolicyService
    behind: str = ""
    """The restriction before it at which Postfix leaves the list."""
    warned: bool = False


def policy_services(smtpd: Smtpd, parameter: str) -> list[Hook]:
    """Return the policy services that a list asks, whosever they are."""
    found, behind = [], ""
    for step in steps(smtpd.raw(parameter), smtpd.raw, smtpd.classes):
        if step.word == ASK:
            found.append(Hook(parameter, parse_policy_service(step.argument), behind, step.warned))
        elif not behind and (step.word in PASSED_BY or (step.word in REFUSING and not step.warned)):
            behind = step.word
    return found


class Wiring:
    """Looks for faults in one Postfix; `notes` are sentences on what could not be seen."""

    def __init__(self, postfix: Postfix, is_ours: IsOurs, mending: Mending) -> None:
        self.notes: list[str] = []
        self._postfix = postfix
        self._is_ours = is_ours
        self._mending = mending

    def faults(self, smtpds: Iterable[Smtpd], limits: Sequence[InForce]) -> list[Fault]:
        """Return what is wrong for these services with these limits; what is one fault for several comes once."""
        return gathered((smtpd, fault) for smtpd in smtpds for fault in self._of(smtpd, limits))

    def _of(self, smtpd: Smtpd, limits: Sequence[InForce]) -> Iterator[Fault]:
        hooks = {name: [h for h in policy_services(smtpd, name) if self._is_ours(h.service)] for name in LISTS}
        yield from self._rcpt(smtpd, hooks)
        yield from self._data(smtpd, hooks)
        yield from self._each(smtpd, hooks)
        if any(hooks.values()):
            yield from self._limits(smtpd, limits)

    def _fault(self, code: str, smtpd: Smtpd, parameter: str, what: str, mend: tuple[str, ...]) -> Fault:
        return Fault(code, what, WHY[code], mend, parameter, self._mending.file_of(smtpd, parameter))

    def _rcpt(self, smtpd: Smtpd, hooks: Mapping[str, list[Hook]]) -> Iterator[Fault]:
        """Find faults of the question about each recipient."""
        own = hooks[RELAY] + hooks[RECIPIENT]
        early = [hook for name in EARLY for hook in hooks[name]]
        asked = [hook for hook in own if not hook.behind]
        if asked:
            delayed = early if smtpd.is_on("smtpd_delay_reject") else []
            yield from self._twice(smtpd, [*[hook for hook in delayed if not hook.behind], *asked], "recipient")
        elif own:
            yield self._behind(smtpd, own[0])
        elif early:
            name = early[0].parameter
            lines = (*self._mending.put_first(smtpd, RECIPIENT), *self._mending.take_out(smtpd, name))
            yield self._fault("wrong-list", smtpd, name, f"policyd is asked in {name} in place of {RECIPIENT}", lines)
        elif not self._perhaps_in_a_class(smtpd):
            lines = self._mending.put_first(smtpd, RECIPIENT)
            yield self._fault("no-rcpt-hook", smtpd, RECIPIENT, "policyd is not asked at RCPT", lines)

    def _data(self, smtpd: Smtpd, hooks: Mapping[str, list[Hook]]) -> Iterator[Fault]:
        """Find faults of the question about each message."""
        asked = [hook for hook in hooks[DATA] if not hook.behind]
        at_end = [hook for hook in hooks[END_OF_DATA] if not hook.behind]
        if asked:
            yield from self._twice(smtpd, asked, "message")
        elif at_end:
            yield from self._twice(smtpd, at_end, "message")
        elif behind := hooks[DATA] + hooks[END_OF_DATA]:
            yield self._behind(smtpd, behind[0])
        elif not self._perhaps_in_a_class(smtpd):
            lines = self._mending.put_first(smtpd, DATA)
            yield self._fault("no-data-hook", smtpd, DATA, "policyd is not asked at DATA", lines)

    def _behind(self, smtpd: Smtpd, hook: Hook) -> Fault:
        lines = self._mending.put_first(smtpd, hook.parameter)
        if hook.behind in REFUSING:
            what = f"policyd stands behind {hook.behind}: it is never asked"
            return self._fault("behind-reject", smtpd, hook.parameter, what, lines)
        what = f"policyd stands behind {hook.behind}: it is not asked about {PASSED_BY[hook.behind]}"
        return self._fault("behind-permit", smtpd, hook.parameter, what, lines)

    def _twice(self, smtpd: Smtpd, asked: Sequence[Hook], about: str) -> Iterator[Fault]:
        keep = next((name for name in (RECIPIENT, RELAY) if any(h.parameter == name for h in asked)), DATA)
        for name in dict.fromkeys(hook.parameter for hook in asked):
            times = sum(hook.parameter == name for hook in asked)
            kept = int(name in (keep, DATA, END_OF_DATA))
            if times > kept:
                other = f" and in {keep}" if not kept else ""
                what = f"policyd is asked {len(asked)} times about each {about}: {times} times here{other}"
                what = what.replace("1 times", "once")
                lines = self._mending.take_out(smtpd, name, kept)
                yield self._fault("asked-twice", smtpd, name, what, lines)

    def _perhaps_in_a_class(self, smtpd: Smtpd) -> bool:
        """Return whether a restriction class asks policyd that no list names: an access table may lead there."""
        for name in smtpd.classes:
            if any(self._is_ours(hook.service) for hook in policy_services(smtpd, name)):
                self.notes.append(
                    f"{smtpd.name}: the restriction class {name} asks policyd; whether an access table leads there "
                    "cannot be seen"
                )
                return True
        return False

    def _each(self, smtpd: Smtpd, hooks: Mapping[str, list[Hook]]) -> Iterator[Fault]:
        """Find faults of single hooks: their options, and the socket that they lead to."""
        asked = [hook for name in LISTS for hook in hooks[name] if not hook.behind]
        for hook in {(hook.parameter, hook.service.written(), hook.warned): hook for hook in asked}.values():
            if hook.warned:
                lines = self._mending.unwarned(smtpd, hook.parameter)
                what = "policyd stands behind warn_if_reject"
                yield self._fault("only-warned", smtpd, hook.parameter, what, lines)
            yield from self._options(smtpd, hook)

    def _options(self, smtpd: Smtpd, hook: Hook) -> Iterator[Fault]:
        wrong = []
        for option, judge, better in OPTIONS:
            parameter = f"smtpd_policy_service_{option}"
            is_own = option in hook.service.options
            value = hook.service.options[option] if is_own else smtpd.value(parameter)
            is_said = is_own or parameter in smtpd.overrides or parameter in self._postfix.given
            if code := judge(value, is_said=is_said):
                wrong.append((code, option, better, value, is_said and not is_own))
        inside = {option: better for _, option, better, _, elsewhere in wrong if not elsewhere}
        mended = PolicyService(hook.service.server, {**hook.service.options, **inside})
        for code, option, better, value, elsewhere in wrong:
            parameter = f"smtpd_policy_service_{option}"
            what = f"{option} is {value or 'empty'} for {hook.service.server}"
            if elsewhere:
                yield self._fault(code, smtpd, parameter, what, self._mending.parameter(smtpd, parameter, better))
            else:
                lines = self._mending.replace(smtpd, hook.parameter, hook.service, mended)
                yield self._fault(code, smtpd, hook.parameter, what, lines)

    def _limits(self, smtpd: Smtpd, limits: Sequence[InForce]) -> Iterator[Fault]:
        """Find settings that keep a limit from being reached, or its action from being taken."""
        most = max((limit.per_message for limit in limits), default=0)
        room = str(most + most // 50)
        for code, name, least in (
            ("recipient-limit", "smtpd_recipient_limit", 0),
            ("recipient-rate", "smtpd_client_recipient_rate_limit", 1),
        ):
            value = smtpd.value(name)
            if value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most:  # noqa: PLR2004
                what = f"{name} is {value}, and policyd allows {most} recipients in a message"
                yield self._fault(code, smtpd, name, what, self._mending.parameter(smtpd, name, room))
        if not (proxy := smtpd.value("smtpd_proxy_filter")):
            return
        for limit in limits:
            if limit.action in NOT_BEFORE_A_QUEUE_FILTER:
                what = f"the limit {limit.name} answers {limit.action}, and smtpd_proxy_filter is {proxy}"
                lines = (f"# in policyd.yaml, limits: {limit.name}: action: REJECT 5.7.1 Too much mail",)
                yield self._fault("before-queue-filter", smtpd, "smtpd_proxy_filter", what, lines)


def _default_action(value: str, *, is_said: bool) -> str:
    word = value.split(None, 1)[0].upper() if value else "OK"
    if not is_said:
        return "default-action-unset"
    if word == "REJECT" or (word[:1] == "5" and len(word) == 3 and word.isdigit()):  # noqa: PLR2004
        return "default-action-refuses"
    return "default-action-permits" if value.upper() in ("OK", "PERMIT", "") or value.isdigit() else ""


def _timeout(value: str, *, is_said: bool) -> str:
    time = seconds(value)
    if time is None or SHORTEST <= time <= LONGEST:
        return ""
    return "timeout-too-short" if time < SHORTEST else "timeout-too-long"


def _try_limit(value: str, *, is_said: bool) -> str:
    return "one-try" if value in ("0", "1") else ""


def _request_limit(value: str, *, is_said: bool) -> str:
    return "requests-limited" if value.strip("0") else ""


def _retry_delay(value: str, *, is_said: bool) -> str:
    return "long-pause" if (seconds(value) or 0) > LONGEST_PAUSE else ""


OPTIONS: Sequence[tuple[str, Callable[..., str], str]] = (
    ("default_action", _default_action, DEFAULT_ACTION),
    ("timeout", _timeout, TIMEOUT),
    ("try_limit", _try_limit, "2"),
    ("request_limit", _request_limit, "0"),
    ("retry_delay", _retry_delay, "1s"),
)
"""Options of a policy service, what may be wrong with each, and the value that mends it."""
