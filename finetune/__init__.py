"""From a checkpoint to measured task scores: `python -m finetune --model DIR_OR_HUB_ID --task NAME --output DIR`.

A `Run` (`run`) is one fine-tuning run, read from top to bottom. A seed is a directory (`train`): Trainer's checkpoints
while it trains, its weights and result.json when it is done. A `Kind` (`kinds`) encodes, scores and answers; training,
`predict` and the model card use the same three. `tasks` is the table of tasks, and `data` reads their rows.
"""
