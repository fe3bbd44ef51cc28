"""Text -> tokenizer -> packed blocks -> trained checkpoint. Run it with `python -m pretrain`."""
