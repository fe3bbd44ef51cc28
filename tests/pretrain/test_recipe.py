"""Protects the command line of pretraining: every field can be set, nothing misspelt or ill-typed gets through."""

import json

import pytest
import yaml

from hf_tiny_transformer.common.errors import UserError, run_command
from pretrain.cli import parse
from pretrain.recipe import RECIPES, find_recipe


def test_every_published_recipe_is_valid():
    names = [path.stem for path in RECIPES.glob("*.yaml")]
    assert "sample" in names
    for name in names:
        _, recipe = parse(["--recipe", name, "--output", "x"])
        recipe.validate()


def test_flags_override_the_recipe_wherever_they_stand():
    settings, recipe = parse(
        [
            "--learning_rate",
            "0.5",
            "--output",
            "out",
            "--recipe",
            "sample",
            "--seed",
            "7",
            "--max-steps",
            "9",
            "--model.hidden_size",
            "64",
            "--stages",
            '[{"share":1,"block_size":16,"batch_size":4,"mask_rate":0.2}]',
            "--corpus",
            "a.txt",
            "b.txt",
            "--text-field",
            "body",
        ]
    )
    assert (settings.seed, settings.max_steps, settings.corpus) == (7, 9, ["a.txt", "b.txt"])
    assert settings.text_field == "body"
    assert (recipe.learning_rate, recipe.model["hidden_size"], recipe.stages[0].block_size) == (0.5, 64, 16)
    assert recipe.model["num_hidden_layers"] == parse(["--output", "x"])[1].model["num_hidden_layers"]


def test_a_recipe_of_ones_own(tmp_path):
    content = yaml.safe_load(find_recipe("sample").read_text())
    content["vocab_size"] = 999
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    assert parse(["--recipe", str(tmp_path / "mine.yaml"), "--output", "x"])[1].vocab_size == 999


BAD_FLAGS = {
    "--learning_rat 0.1": r"--learning_rat \(did you mean --learning-rate\?\)",
    "--recipe decodr": r"\(did you mean decoder\?\)",
    "--learning_rate fast": "--learning-rate fast: must be a number",
    "--learning_rate -1": "learning_rate must be positive",
    "--stages.batch_size -4": "batch_size must be at least 1",
    "--stages.mask_rate 1.5": "mask_rate must be between 0 and 1",
    "--stages.matrix_learning_rate 0": "matrix_learning_rate must be positive",
    "--stages.block_size 4096": "exceeds max_position_embeddings",
    "--stages []": "stages must have at least one",
    "--masking letters": "masking",
    "--optimizer sgd": "optimizer",
    "--family gpt": "family",
    "--vocab_size many": "--vocab-size many: must be a whole number",
    "--vocab_size 0": "vocab_size must be at least 1",
    "--warmup 0.9": "warmup and decay",
    "--model.hidden_sise 64": r"model.hidden_sise is unknown in family encoder \(did you mean hidden_size\?\)",
    "--model.hidden_size 65": "hidden_size .65. must be a multiple",
    "--model.hidden_size wide": "hidden_size",
    "--objective mlm_nsp": "objective of family encoder must be one of: mlm",
    "--recipe decoder --objective mlm": "objective of family decoder must be one of: next_token",
    "--recipe decoder --stages.mask_rate 0.1": "mask_rate must be left out",
    "--recipe decoder --masking span": "masking must be token with next_token",
    "--recipe decoder --examples ['a_[MASK]']": r"fills no \[MASK\]",
    "--recipe seq2seq --stages.mask_rate null": "mask_rate is missing",
    "--recipe seq2seq --model.num_decoder_layers 0": "num_decoder_layers .0. must be at least 1",
    "--examples [nothing_masked]": r"no \[MASK\]",
    "--max-steps -3": "max-steps -3: must be positive",
    "--max-steps 3 --minutes 1": "exclude each other",
    "--minutes soon": "minutes",
    "--seed -1": "seed -1",
    "--recipe nowhere": "neither a published recipe",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_wrong_flags_are_one_line_and_exit_2(flags, tmp_path, capsys):
    def main():
        settings, recipe = parse(["--output", str(tmp_path / "out"), *flags.split()])
        settings.validate()
        recipe.validate()

    assert run_command(main) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("error: ")
    with pytest.raises(UserError, match=BAD_FLAGS[flags]):
        main()
    assert not (tmp_path / "out").exists()


def test_a_misspelt_field_in_a_recipe_file(tmp_path):
    content = yaml.safe_load(find_recipe("sample").read_text()) | {"vocab_sise": 0.3}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"mine\.yaml: unknown field vocab_sise \(did you mean"):
        parse(["--recipe", str(tmp_path / "mine.yaml"), "--output", "x"])

    content = yaml.safe_load(find_recipe("sample").read_text()) | {"stages": [{"share": 1.0, "block_sise": 8}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"stages: unknown field block_sise \(did you mean block_size\?\)"):
        parse(["--recipe", str(tmp_path / "mine.yaml"), "--output", "x"])


def test_a_wrong_value_in_a_recipe_file(tmp_path):
    content = yaml.safe_load(find_recipe("sample").read_text())
    for name, value in (("learning_rate", "fast"), ("stages", [{"share": 1.0, "block_sise": 8}]), ("optimizer", "sgd")):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | {name: value}))
        with pytest.raises(UserError, match=rf"mine\.yaml: .*{name}"):
            parse(["--recipe", str(tmp_path / "mine.yaml"), "--output", "x"])
    (tmp_path / "mine.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        parse(["--recipe", str(tmp_path / "mine.yaml"), "--output", "x"])


def test_help_shows_the_values_that_will_run(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--recipe", "decoder", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    content = yaml.safe_load(find_recipe("decoder").read_text())
    assert f"Peak learning rate of Muon; ignored with adamw. (default: {content['matrix_learning_rate']})" in text
    assert f"(default: {json.dumps(content['stages'])})" in text and "Model family. (default: decoder)" in text
    assert text.count("(required)") == 1, "only --output"


def test_output_is_required():
    with pytest.raises(UserError, match="output"):
        parse([])


def test_a_recipe_file_without_a_required_field_is_refused_in_one_line(tmp_path):
    (tmp_path / "part.yaml").write_text("learning_rate: 0.001\n")
    with pytest.raises(UserError, match="lacks family, model, stages, vocab_size"):
        parse(["--recipe", str(tmp_path / "part.yaml"), "--output", "x"])


ODD_RECIPES = {
    "a number as a name": ({"model": {1: 2}}, "model.1 is unknown"),
    "a number as a field": ({1: 2}, "unknown field 1"),
    "more pieces than memory": ({"vocab_size": 2**70}, "vocab_size must be at least 1 and below"),
    "a width of more": ({"model": {"hidden_size": 2**70}}, "model.hidden_size must be less than"),
    "the tokenizer's size": ({"model": {"vocab_size": 5}}, "model.vocab_size is set by the tokenizer"),
    "the tokenizer's tokens": ({"model": {"pad_token_id": 5}}, "model.pad_token_id is set by the tokenizer"),
    "a list": ({"model": [1]}, r"model \[1\]: must be a mapping"),
    "a text": ({"stages": "all"}, "stages all: must be a list"),
    "stages of numbers": ({"stages": [1]}, "stages: each item must be a mapping of fields"),
    "half a stage": ({"stages": [{"share": 1.0}]}, "stages: an item lacks block_size, batch_size"),
    "a family": ({"family": "encodr"}, "family encodr: must be one of encoder, bert"),
    "no end": ("model: " + "{a: " * 500, "cannot be read"),
    "deep": ("model: " + "{a: " * 500 + "1" + "}" * 500, "cannot be read"),
    "itself": ("family: encoder\nmodel: &a {hidden_size: *a}\nvocab_size: 5\nstages: []", "recursion"),
}


@pytest.mark.parametrize("name", ODD_RECIPES)
def test_odd_recipes_are_one_line(name, tmp_path):
    content, problem = ODD_RECIPES[name]
    if not isinstance(content, str):
        content = yaml.safe_dump(yaml.safe_load(find_recipe("sample").read_text()) | content)
    (tmp_path / "odd.yaml").write_text(content)
    with pytest.raises(UserError, match=problem):
        parse(["--recipe", str(tmp_path / "odd.yaml"), "--output", "x"])[1].validate()
