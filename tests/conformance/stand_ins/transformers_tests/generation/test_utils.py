"""Replaces transformers' generation tests, which its source distribution lacks; ours are in tests/models."""


class GenerationTesterMixin:
    """Empty: a common test requires this mixin for classes that can generate."""
