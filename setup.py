"""What setup.cfg has no words for: a part that is compiled where that can be done, and done without elsewhere."""

from hashlib import sha256
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "policyd/onestep.c"
DIGEST = sha256(Path(SOURCE).read_bytes()).hexdigest()

setup(
    ext_modules=[Extension("policyd._onestep", [SOURCE], define_macros=[("SOURCE", f'"{DIGEST}"')], optional=True)],
)
