"""From a checkpoint to measured task scores: `python -m finetune --model DIR_OR_HUB_ID --task NAME --output DIR`.

The way through: `cli` (flags) -> `experiment` (one run, top to bottom) -> `tasks` (the table of tasks, their splits)
-> `checkpoint` (any model that `AutoModelForSequenceClassification` opens) -> `train` (one seed on transformers'
`Trainer`) -> `baselines` (what `--compare` sets beside it) -> `report` and `results` (what is printed and written).
"""
