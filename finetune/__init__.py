"""From a checkpoint to measured task scores: `python -m finetune --model DIR_OR_HUB_ID --task NAME --output DIR`.

The way through: `cli` (flags) -> `experiment` (one task, top to bottom) or `suite` (all of GLUE) -> `tasks` (the table
of tasks; `glue`, `tagged_data`, `squad_data` and `own_data`, with `choice_data`, read them) -> `kinds` (all that
depends on the kind: model, inputs, predictions, metrics) -> `checkpoint` (any model that the kind's Auto class opens)
-> `search` (settings chosen on validation) -> `train` (one seed on transformers' `Trainer`; `epochs` is what happens
after each) -> `baselines` (what `--compare` sets beside it) -> `submission` (GLUE's test rows) -> `report` and
`results` (what is printed and written). `resume` keeps what is finished until all is, for a run that is killed.

Two commands train nothing: `python -m finetune predict` (the package `predict`) answers a file of texts with the
result, and `python -m finetune --task blimp` (`zero_shot`) asks a language model what it knows of grammar.
"""
