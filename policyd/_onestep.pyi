from collections.abc import Mapping
from typing import Any

SHAPE: int
SOURCE: str

def fields(request: bytes, layout: bytes, /) -> tuple[bytes, ...] | None: ...
def answer(
    events: list[tuple[int, int]], place: int, steps: Mapping[int, tuple[Any, ...]], /
) -> tuple[int, tuple[Any, object] | None]: ...
