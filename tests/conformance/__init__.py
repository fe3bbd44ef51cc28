"""Hugging Face's own model tests, run on our families and on stock ones."""
