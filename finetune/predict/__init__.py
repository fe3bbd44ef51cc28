"""A fine-tuned model put to use: `python -m finetune predict --model DIR --input FILE --output FILE`.

The way through: `run` (flags, and the stream from file to file) -> `rows` (texts of a file, a row at a time) ->
`labels`, `entities`, `passages`, `choices` or `writing` (what a model of that kind says to them; `answers` has what
they have in common, and `kinds` what training does the same way).
"""
