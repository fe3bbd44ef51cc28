"""Protects pretraining end to end: what a run leaves, exact resume, twice the same, and nothing lost on bad input."""

import json
import shutil
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pretraining import TINY, command, losses, pretrain, refused, run, same_weights, weights, without
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    pipeline,
)

from hf_tiny_transformer import TinyTransformerEncoderConfig, TinyTransformerEncoderForMaskedLM
from hf_tiny_transformer.common.files import write_sums
from hf_tiny_transformer.publish.card_code import refused_code
from pretrain.batches import validation_batches
from pretrain.cli import parse
from pretrain.data.prepare import prepare_data
from pretrain.metrics import read_metrics
from pretrain.optimizer import build_optimizers, set_learning_rate
from pretrain.validation import validate


def test_a_run_leaves_what_the_readme_says(trained):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (trained / name).is_file(), name
    for name in ("recipe.yaml", "run.json", "metrics.jsonl", "summary.json", "loss.png"):
        assert (trained / "training" / name).is_file(), name
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["step-0", "step-12", "step-4", "step-8"]
    lines = read_metrics(trained / "training" / "metrics.jsonl")
    fields = {"step", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds"}
    assert all(fields <= line.keys() for line in lines)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["tokens"] == 12 * 128
    assert not list(trained.parent.glob(".*")), "nothing half-written stays behind"


@pytest.mark.parametrize("place", [".", "checkpoints/step-0", "checkpoints/step-8"])
def test_every_checkpoint_opens_as_it_lies(trained, place):
    tokenizer = AutoTokenizer.from_pretrained(trained / place)
    model, loading = AutoModelForMaskedLM.from_pretrained(trained / place, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    AutoModel.from_pretrained(trained / place)
    guesses = pipeline("fill-mask", model=model, tokenizer=tokenizer)("the music is [MASK] .")
    assert len(guesses) == 5


def test_training_learns_and_its_figures_agree_with_the_model(trained, corpus_file, tmp_path):
    """The validation loss in the card is what the saved model has."""
    long = pretrain(corpus_file, tmp_path / "long", "--max-steps=120")
    curve = [m["validation_loss"] for m in read_metrics(long / "training/metrics.jsonl") if "validation_loss" in m]
    assert curve[-1] < curve[0] - 0.5
    _, recipe = parse(command(corpus_file, long))
    data = prepare_data([str(corpus_file)], "text", recipe)
    batches = validation_batches(recipe, data, torch.device("cpu"), bounds=False)
    again = validate(AutoModelForMaskedLM.from_pretrained(long), batches, Accelerator())["validation_loss"]
    assert again == pytest.approx(curve[-1], abs=1e-6)
    assert f"{curve[-1]:.3f}" in (long / "README.md").read_text()
    assert json.loads((long / "training/summary.json").read_text())["validation_loss"] == curve[-1]


def test_the_same_command_twice_gives_the_same_bytes(trained, corpus_file, tmp_path):
    again = pretrain(corpus_file, tmp_path / "again", "--max-steps=12", "--save-steps=4")
    assert same_weights(trained, again)
    other = pretrain(corpus_file, tmp_path / "other", "--max-steps=12", "--seed=2")
    assert not same_weights(trained, other)


def test_resume_ends_with_the_same_bytes_and_the_same_metrics(trained, corpus_file, tmp_path):
    """As after a crash at step 9: the checkpoints of steps 0, 4 and 8 are there, metrics run to step 9."""
    half = tmp_path / "half"
    shutil.copytree(trained, half)
    for name in ("config.json", "model.safetensors", "README.md"):
        (half / name).unlink()
    shutil.rmtree(half / "checkpoints" / "step-12")
    metrics = half / "training" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join(lines[:9]) + "\n" + lines[9][:20])  # the crash cut a line short
    pretrain(corpus_file, half, "--max-steps=12", "--save-steps=4", "--resume")
    assert same_weights(trained, half)
    assert losses(trained) == losses(half)


@pytest.fixture
def runs_of_several_precisions():
    """Reset what Accelerate keeps for a process, which has one precision."""
    yield (reset := partial(AcceleratorState._reset_state, reset_partial_state=True))
    reset()


def test_a_cpu_trains_in_bf16_where_asked(trained, corpus_file, tmp_path, runs_of_several_precisions):
    """A run that is resumed keeps its precision, which the record and the card name; the default is fp32."""
    runs_of_several_precisions()
    output = pretrain(corpus_file, tmp_path / "run", "--max-steps=12", "--save-steps=4", "--precision=bf16")
    assert json.loads((output / "training/run.json").read_text())["precision"] == "bf16"
    assert ", bf16" in json.loads((output / "training/summary.json").read_text())["hardware"]
    assert losses(output) == pytest.approx(losses(trained), abs=0.05) and losses(output) != losses(trained)
    half = tmp_path / "half"
    shutil.copytree(output, half)
    shutil.rmtree(half / "checkpoints" / "step-12")
    runs_of_several_precisions()
    assert run([*TINY, "--corpus", str(corpus_file), "--output", half, "--resume"]) == 0
    assert same_weights(output, half)


def test_a_stages_own_rate_is_muons_only():
    model = TinyTransformerEncoderForMaskedLM(TinyTransformerEncoderConfig(vocab_size=50, hidden_size=32))
    recipe = parse(["--output", "x", "--learning_rate=0.002", "--matrix_learning_rate=0.005"])[1]
    muon, adamw = optimizers = build_optimizers(model, recipe)
    for of_stage, expected in ((0.03, 0.015), (None, 0.0025)):
        assert set_learning_rate(optimizers, 0.5, of_stage) == 0.001
        assert [group["lr"] for group in muon.param_groups] == [expected]
        assert {group["lr"] for group in adamw.param_groups} == {0.001}


def test_micro_batches_do_not_change_what_is_learned(corpus_file, tmp_path):
    """AdamW: Muon orthogonalises in bfloat16, which turns rounding into visible differences."""
    curves = []
    for size in (8, 4, 3):
        output = pretrain(
            corpus_file, tmp_path / str(size), "--max-steps=12", "--optimizer=adamw", f"--micro_batch_size={size}"
        )
        curves.append(losses(output))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)


def test_minutes_fix_the_steps_once(corpus_file, tmp_path):
    output = pretrain(corpus_file, tmp_path / "timed", "--minutes=0.01")
    steps = json.loads((output / "training/run.json").read_text())["max_steps"]
    assert (output / "checkpoints" / f"step-{steps}").is_dir()


def test_next_sentence_pretraining(corpus_file, tmp_path):
    changes = without(TINY, "--examples")
    output = tmp_path / "nsp"
    flags = ["--recipe=bert-nsp", "--corpus", str(corpus_file), "--output", str(output), "--max-steps=6", *changes]
    assert run(flags) == 0
    model, loading = AutoModelForPreTraining.from_pretrained(output, output_loading_info=True)
    assert type(model).__name__ == "TinyTransformerBertForPreTraining"
    assert not loading["missing_keys"]
    _, loading = AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"], "or its last lines frighten a user"
    assert 0 <= json.loads((output / "training/summary.json").read_text())["validation_next_sentence_accuracy"] <= 1


NO_MASKS = (
    '--stages=[{"share": 0.5, "block_size": 16, "batch_size": 8}, {"share": 0.5, "block_size": 32, "batch_size": 4}]'
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "flags", "auto_class"),
    [
        ("decoder", [*without(TINY, "--stages", "--examples"), NO_MASKS], AutoModelForCausalLM),
        ("seq2seq", without(TINY, "--vocab_size"), AutoModelForSeq2SeqLM),
    ],
)
def test_other_families_pretrain_resume_and_show_what_they_do(recipe, flags, auto_class, corpus_file, tmp_path, capsys):
    """The same loop: a run that stopped half-way ends with the same bytes; each model is used for what it is for."""
    flags = [f"--recipe={recipe}", "--corpus", str(corpus_file), *flags, "--vocab_size=180", "--save-steps=6"]
    assert run([*flags, "--output", tmp_path / "whole", "--max-steps=12"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if " -> " in line]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert shown and all(line in card for line in shown)
    assert refused_code(card.split("```python\n")[1].split("```")[0]) is None, "or verify would not run it"
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-12")
    assert run([*flags, "--output", tmp_path / "half", "--max-steps=12", "--resume"]) == 0
    assert same_weights(tmp_path / "whole", tmp_path / "half")
    for place in ("whole", "whole/checkpoints/step-0"):
        model, loading = auto_class.from_pretrained(tmp_path / place, output_loading_info=True)
        assert not loading["missing_keys"] and not loading["unexpected_keys"]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / place)
        written = model.generate(
            **tokenizer(["the music", "every"], padding=True, return_tensors="pt"), max_new_tokens=4
        )
        assert written.shape[0] == 2
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


def test_another_runs_directory_is_left_alone(trained, corpus_file, capsys):
    before = weights(trained)
    message = refused(capsys, command(corpus_file, trained, "--max-steps=3"))
    assert str(trained) in message
    assert all(before[name].equal(tensor) for name, tensor in weights(trained).items())


def test_resume_wants_the_same_recipe_and_corpus(trained, corpus_file, tmp_path, capsys):
    message = refused(capsys, command(corpus_file, trained, "--max-steps=12", "--resume", "--learning_rate=0.5"))
    assert "learning_rate" in message
    assert "--max-steps 13" in refused(capsys, command(corpus_file, trained, "--max-steps=13", "--resume"))
    assert "--seed 5" in refused(capsys, command(corpus_file, trained, "--seed=5", "--resume"))
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Quite another text, number {i}, of some length." for i in range(300)))
    assert "--corpus" in refused(capsys, command(other, trained, "--resume"))


def test_a_state_of_torchs_muon_is_resumed_and_damage_is_named(trained, corpus_file, tmp_path, capsys):
    """Its additional settings do not matter."""
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    shutil.rmtree(old / "checkpoints" / "step-12")
    file = old / "training" / "run.json"
    state_file = old / "checkpoints" / "step-8" / "training_state.pt"
    state = torch.load(state_file, weights_only=True)
    settings = torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2))], momentum=0.95).param_groups[0]
    state["optimizers"][0]["param_groups"] = [settings | group for group in state["optimizers"][0]["param_groups"]]
    assert "nesterov" in state["optimizers"][0]["param_groups"][0]
    torch.save(state, state_file)
    write_sums(state_file.parent)
    pretrain(corpus_file, old, "--save-steps=4", "--resume")
    assert same_weights(trained, old)
    for text in ('{"seed": 1}', "{"):
        file.write_text(text)
        assert "run.json" in refused(capsys, command(corpus_file, old, "--resume"))


def test_the_output_inside_the_corpus_is_not_trained_on(corpus_file, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    shutil.copy(corpus_file, folder)
    output = pretrain(folder, folder / "run", "--max-steps=2", "--save-steps=1")
    shutil.rmtree(output / "checkpoints" / "step-2")
    pretrain(folder, output, "--resume")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(trained, corpus_file, tmp_path, caplog):
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    file = broken / "checkpoints" / "step-12" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    pretrain(corpus_file, broken, "--save-steps=4", "--resume")
    assert "step-12.damaged" in caplog.text
    assert same_weights(trained, broken)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--corpus", "nowhere.txt"], "nowhere.txt"),
        (["--vocab_size", "90000"], "vocab_size"),
        (["--learning_rate", "-1"], "learning_rate"),
        (["--stages.block_size=512", "--validation_share=0.01"], "less than one block of 512"),
        (["--lerning_rate", "1"], "lerning_rate"),
        pytest.param(
            ["--attention", "flash_attention_2"],
            "flash_attention_2",
            marks=pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed"),
        ),
    ],
)
def test_bad_input_leaves_no_output_behind(flags, words, corpus_file, tmp_path, capsys):
    assert words in refused(capsys, command(corpus_file, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()
