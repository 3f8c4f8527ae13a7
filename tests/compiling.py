"""The compiled part, for tests that need it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from policyd import compiled


def require_compiled() -> None:
    """Skip the test where nothing was compiled; under CI it fails, for there nothing may be left out."""
    if compiled.answer is not None:
        return
    reason = "policyd/onestep.c is not compiled: apt-get install gcc libc6-dev python3-dev, and tests/run"
    if os.environ.get("CI"):
        pytest.fail(f"the tests of the compiled part cannot run: {reason}", pytrace=False)
    pytest.skip(reason)


def fields() -> Callable[[bytes, bytes], tuple[bytes, ...] | None]:
    """Return what takes requests apart."""
    require_compiled()
    assert compiled.fields is not None
    return compiled.fields


def answer() -> Callable[..., tuple[int, tuple[Any, object] | None]]:
    """Return what does the steps."""
    require_compiled()
    assert compiled.answer is not None
    return compiled.answer
