"""What is compiled of a request's way, where there was a C compiler when policyd was installed: see onestep.c.

Everything works without it, and means the same. The environment variable POLICYD_PURE_PYTHON, where it is not empty,
has policyd do without.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_SHAPE = 1
"""That of layouts and steps: what was compiled of another policyd is not used."""

Events = list[tuple[int, int]]
"""Descriptors and what happened there, as select.epoll tells it."""

Step = tuple[Any, bytes, Callable[..., object], Callable[[], float], object, object, object, bytes]
"""What there is to do when a request comes in: its transport, its layout, what decides and what tells the time, the
request that is to be filled, its connection, the verdict that passes, and its reply."""

Left = tuple[Any, object]
"""What a step has left to be dealt with, behind its transport:

- the bytes that came in, where they are no single request of the layout; b"" where the connection is over;
- the verdict, where it is another one than that which passes;
- the exception by which the decision was broken off;
- how many bytes of the reply were sent, where not all were.
"""

fields: Callable[[bytes, bytes], tuple[bytes, ...] | None] | None = None
"""Returns the values of a request that has a layout's names in its order, None where it is another one."""

answer: Callable[[Events, int, dict[int, Step]], tuple[int, Left | None]] | None = None
"""Does the steps of the events from a place on, up to one that has none or leaves something.

Returns the place after the events that are done, and what the last of them has left, None where nothing is. So all is
done in the order in which it happened.

A step receives what is there; if it is one request of its layout, has it decided; and if that is the verdict that
passes, sends its reply.
"""

if not os.environ.get("POLICYD_PURE_PYTHON"):
    try:
        from policyd import _onestep
    except ImportError:
        pass
    else:
        if _onestep.SHAPE == _SHAPE:
            fields, answer = _onestep.fields, _onestep.answer
