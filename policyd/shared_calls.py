"""Calls of the script that nodes share."""

from __future__ import annotations


class AwayError(Exception):
    """The store has not answered: why, in words."""
