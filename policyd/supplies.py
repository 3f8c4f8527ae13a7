"""What the config names outside of its file.

For `notify`: templates, a secret, and whether TLS is there. For `cluster`: a password, and whether txredisapi is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import stat
from pathlib import Path

from policyd.sections_notify import Supplies
from policyd.templates import MAX_TEMPLATE, TEXTS
from policyd.yamlnodes import clipped, suggestion

SHIPPED = Path(__file__).parent / "mail"
"""The texts that come with policyd, a folder for each language."""

ENDING = ".txt"

LEAST_SECRET = 16
"""Bytes that a secret has at least: shorter ones can be guessed."""

MAX_SECRET = 4096
"""Bytes of a secret."""

_TLS = ("OpenSSL", "service_identity")
_STORE = ("txredisapi", *_TLS)


def secret(path: str) -> bytes:
    """Read a secret, without the line end behind it.

    Raises ValueError where others can read it, or where it is none; OSError where it cannot be read.
    """
    return _closed(path, "secret", LEAST_SECRET)


def password(path: str) -> bytes:
    """Read the store's password, without the line end behind it.

    Raises ValueError where others can read it, or where it is none; OSError where it cannot be read.
    """
    return _closed(path, "password", 1)


def _closed(path: str, what: str, least: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"want a file, and {clipped(path)} is none")
        if found.st_mode & stat.S_IRWXO:
            raise ValueError(f"everybody can read or write {clipped(path)}: want mode 640 or less (chmod o= {path})")
        data = file.read(MAX_SECRET + 1).rstrip(b"\r\n")
    if not least <= len(data) <= MAX_SECRET:
        raise ValueError(f"want a {what} of {least} to {MAX_SECRET} bytes in {clipped(path)}, got {len(data)}")
    return data


def templates(language: str, folder: str | None) -> dict[str, tuple[str, str]]:
    """Return the shipped templates, and in their place those of a folder: by name, their file and text.

    Raises ValueError for a file of a name that no template has, or whose text is none; OSError for one that cannot be
    read.
    """
    files = {name: SHIPPED / language / (name + ENDING) for name in TEXTS}
    if folder is not None:
        for file in sorted(Path(folder).iterdir()):
            if file.suffix == ENDING:
                if file.stem not in files:
                    raise ValueError(f"no template is called {clipped(file.stem)}, {suggestion(file.stem, TEXTS)}")
                if not file.is_file():
                    raise ValueError(f"want a file, and {str(file)!r} is none")
                files[file.stem] = file
    return {name: (str(file), _text(file)) for name, file in files.items()}


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        data = stream.read(MAX_TEMPLATE + 1)
    if len(data) > MAX_TEMPLATE:
        raise ValueError(f"want a file of at most {MAX_TEMPLATE} bytes: {file}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}:{line}: want UTF-8, got the byte 0x{data[error.start]:02x}") from error


def use_url(url: str) -> None:
    """Raise ValueError where nothing can be posted to this address: https takes what policyd alone does not.

    What posts is loaded here, where a config is read and nobody waits: that takes a tenth of a second.
    """
    missing = [name for name in _TLS if importlib.util.find_spec(name) is None]
    if url.startswith("https:") and missing:
        raise ValueError(
            "https needs pyOpenSSL and service_identity: from the source, /opt/policyd/bin/pip install '.[tls]'"
        )
    importlib.import_module("twisted.web.client")


def use_store() -> None:
    """Raise ValueError where what a shared store takes is not installed; nothing of it is loaded."""
    missing = [name for name in _STORE if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"a shared store needs policyd[cluster], and {', '.join(missing)} is not installed:"
            " from the source, /opt/policyd/bin/pip install '.[cluster]'"
        )


SUPPLIES = Supplies(secret, templates, use_url, password, use_store)
