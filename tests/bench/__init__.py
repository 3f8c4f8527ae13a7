"""Measurements: `.tests/bin/python -m tests.bench` (after tests/run has set up .tests)."""
