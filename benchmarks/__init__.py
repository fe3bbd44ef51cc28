"""Measurements side by side with stock transformers. They print and write tables; they assert nothing."""
