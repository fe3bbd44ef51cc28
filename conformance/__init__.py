"""Hugging Face's own common model tests, run on our families and on stock ones, side by side."""
