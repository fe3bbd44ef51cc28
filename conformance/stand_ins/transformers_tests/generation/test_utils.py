"""Stands in for transformers' generation tests, which its source distribution leaves out (ours are in tests/)."""


class GenerationTesterMixin:
    """Holds no test. A common test asks that every class which can generate is tested with this mixin."""
