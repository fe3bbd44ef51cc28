"""Text to packed tokens: sources -> documents -> tokenizer -> packed blocks."""
