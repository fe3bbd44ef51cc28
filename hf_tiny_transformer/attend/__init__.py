"""Attention of any transformers model: read it, and draw it as an HTML page or a matplotlib figure."""
