"""A Postfix policy daemon: counts per SASL user, refuses or holds what is over a limit, locks hijacked accounts."""

__version__ = "0.1.0"
