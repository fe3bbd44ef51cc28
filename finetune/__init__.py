"""From a checkpoint to measured task scores: `python -m finetune --model DIR_OR_HUB_ID --task NAME --output DIR`.

Three ideas. A `Run` (`run`) is one fine-tuning run, read from top to bottom. A seed is a directory (`train`): Trainer's
checkpoints while it trains, its weights and result.json when it is done. A `Kind` (`kinds`) encodes, scores and
answers; training, `predict` and the model card use the same three.

`cli` reads the flags, `tasks` is the table of tasks, `data` reads their rows, `trainer` is transformers' Trainer with
the parts that it lacks, `baselines` are the simpler methods of `--compare`, `report` is results.json, the tables and
the card, and `suite` is `--task glue`. `predict` and `blimp` train nothing.
"""
