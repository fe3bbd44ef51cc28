"""What a language model knows without being trained for it: `python -m finetune --task blimp --model DIR --output DIR`.

The way through: `cli` (flags) -> `run` (one measurement, top to bottom) -> `blimp` (the pairs) -> `scoring` (how likely
a model finds a sentence) -> `results` (what is counted, printed and written).
"""
