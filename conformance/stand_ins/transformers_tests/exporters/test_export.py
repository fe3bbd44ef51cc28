"""Stands in for transformers' export tests, which its source distribution leaves out."""


class ExportTesterMixin:
    """Holds no test; `ModelTesterMixin` is built on it."""
