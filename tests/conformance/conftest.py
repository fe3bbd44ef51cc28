"""Keeps these files out of our own test run: `python -m tests.conformance` runs them."""

collect_ignore_glob = ["*"]
