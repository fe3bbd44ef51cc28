"""A fine-tuned model put to use: `python -m finetune predict --model DIR --input FILE --output FILE`.

The way through: `run` (flags, and the stream from file to file) -> `rows` (texts of a file, a row at a time) ->
`answers` (what the model says to them).
"""
