"""Protects training with transformers' Trainer: collators, gradient accumulation, label smoothing, checkpoints."""

import pytest
import torch
from families import (
    CLASSES,
    LANGUAGE_MODELS,
    VOCAB,
    assert_close,
    every_family,
    gradients,
    language_model,
    random_ids,
    tiny_model,
    tiny_tokenizer,
)
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

TRAINABLE = [(family, task) for family, task in CLASSES if task != "Model"]
# losses that are a mean over a varying number of targets, or over the rows of the batch
SUMMED_LOSSES = [
    *LANGUAGE_MODELS.items(),
    ("Bert", "ForTokenClassification"),
    ("Encoder", "ForTokenClassification"),
    ("Bert", "ForNextSentencePrediction"),
    ("Bert", "ForSequenceClassification"),
    ("Encoder", "ForSequenceClassification"),
    ("Encoder", "regression"),
    ("Decoder", "ForSequenceClassification"),
    ("Encoder", "ForQuestionAnswering"),
    ("Encoder", "ForMultipleChoice"),
]


def rows_for(task: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Build texts with labels that depend on their tokens; of each 16, the first 8 have more targets."""
    rows = []
    for index in range(count):
        ids = random_ids(3, 9) if task == "ForMultipleChoice" else random_ids(9)
        targets = torch.rand(ids.shape) < (0.9 if index % 16 < 8 else 0.2)
        targets[..., 4] = True
        row = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "name": f"text {index}",
        }
        if task in LANGUAGE_MODELS.values() or task == "ForPreTraining":
            row["labels"] = torch.where(targets, ids, -100)
        elif task == "ForTokenClassification":
            row["labels"] = torch.where(targets, ids % 2, -100)
        elif task == "regression":
            row["labels"] = ids[0] / VOCAB
        elif task == "ForQuestionAnswering":
            row |= {"start_positions": ids.argmin(), "end_positions": ids.argmax()}
        else:
            row["labels"] = ids.flatten()[0] % 2
        if task == "ForPreTraining":
            row["next_sentence_label"] = ids[0] % 2
        rows.append(row)
    return rows


def train(model: PreTrainedModel, rows: list, folder, trainer_class=Trainer, collator=None, **settings) -> Trainer:
    """Train on CPU, and log the loss of each step."""
    settings = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1} | settings
    settings |= {"output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 1}
    arguments = Seq2SeqTrainingArguments if trainer_class is Seq2SeqTrainer else TrainingArguments
    trainer = trainer_class(model, arguments(**settings), train_dataset=rows, data_collator=collator)
    trainer.train(resume_from_checkpoint=settings.get("resume_from_checkpoint"))
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("family", "task"), TRAINABLE)
def test_the_loss_falls(family: str, task: str, tmp_path):
    """On eight texts; the model can then be evaluated, used for prediction, and saved."""
    model, rows = tiny_model(family, task, initializer_range=0.05), rows_for(task, 8)
    trainer = train(model, rows, tmp_path, max_steps=15, save_strategy="no")
    curve = losses(trainer)
    assert curve[-1] < 0.8 * curve[0], curve
    evaluated = trainer.evaluate(rows)["eval_loss"]
    assert evaluated < curve[0]
    predictions = trainer.predict(rows).predictions
    assert len(predictions[0] if isinstance(predictions, tuple) else predictions) == len(rows)
    trainer.save_model(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert all(torch.equal(parameter, model.get_parameter(name)) for name, parameter in loaded.named_parameters())


@pytest.mark.parametrize(("family", "task"), SUMMED_LOSSES)
def test_four_batches_of_eight_equal_one_of_thirty_two(family: str, task: str, tmp_path):
    """Although the micro-batches differ in their number of targets."""
    rows = rows_for(task, 96)
    curves, weights = [], []
    for size in (32, 8):
        torch.manual_seed(0)
        if task == "regression":
            model = tiny_model(family, "ForSequenceClassification", num_labels=1)
        else:
            model = tiny_model(family, task)
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 32 // size}
        settings = {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 1, "save_strategy": "no"}
        sequential = {"train_sampling_strategy": "sequential"}
        trainer = train(model, rows, tmp_path / str(size), **settings, **sizes, **sequential)
        curves.append(losses(trainer))
        weights.append({name: parameter.detach() for name, parameter in model.named_parameters()})
    assert len(curves[0]) == 3
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert_close(weights[1], weights[0])


def test_label_smoothing_shifts_the_labels_of_a_decoder(tmp_path):
    """Trainer recognises a causal language model by its name in transformers' tables (families.py)."""
    model, inputs = language_model("Decoder"), {"input_ids": random_ids(2, 9)}
    inputs["labels"] = inputs["input_ids"].clone()
    arguments = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[])
    smoothed = Trainer(model, arguments).compute_loss(model, dict(inputs))
    logits = model(**inputs).logits[:, :-1].flatten(0, 1)
    targets = inputs["labels"][:, 1:].flatten()
    assert_close(smoothed, torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1))


@every_family
def test_resume_is_exact(family: str, tmp_path):
    """Three steps, a checkpoint and three more steps give the weights of six steps."""
    task, rows = LANGUAGE_MODELS[family], rows_for(LANGUAGE_MODELS[family], 24)
    settings = {"max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4}
    uninterrupted = train(language_model(family), rows, tmp_path / "run", **settings)
    fresh = tiny_model(family, task)
    train(fresh, rows, tmp_path / "run", **settings, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, uninterrupted.model.get_parameter(name)), name


@pytest.mark.parametrize("family", ["Bert", "Encoder", "Decoder"])
def test_language_model_collator(family: str, tmp_path):
    """On texts of different lengths; with mlm=False for the Decoder."""
    tokenizer = tiny_tokenizer()
    texts = ["word5 word6 word7 word8", "word9 word10", "word11 word12 word13 word14 word15 word16"] * 4
    rows = [dict(tokenizer(text)) for text in texts]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=family != "Decoder", seed=0)
    model = language_model(family, initializer_range=0.05)
    curve = losses(train(model, rows, tmp_path, collator=collator, max_steps=50, save_strategy="no"))
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])
    if family == "Decoder":
        inputs = collator(rows[:3])
        assert torch.equal(inputs["labels"] == -100, inputs["attention_mask"] == 0)
        assert torch.equal(inputs["labels"][0, :6], inputs["input_ids"][0, :6])


def test_flattening_collator(tmp_path):
    """Packed texts give the loss and gradients of padded ones."""
    tokenizer = tiny_tokenizer(padding_side="right")
    texts = ["word5 word6 word7 word8", "word9 word10", "word11 word12 word13 word14 word15 word16"]
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    padded = dict(DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows))
    model = language_model("Decoder").train()
    for settings in ({}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}):
        flat = dict(DataCollatorWithFlattening(**settings)(rows))
        assert flat["input_ids"].shape == (1, 18) and "attention_mask" not in flat
        assert_close(model(**flat).loss, model(**padded).loss)
        assert_close(gradients(model, **flat), gradients(model, **padded))
    curve = losses(
        train(model, rows * 8, tmp_path, collator=DataCollatorWithFlattening(), max_steps=20, save_strategy="no")
    )
    assert curve[-1] < 0.5 * curve[0]


def test_seq2seq_trainer_generates_what_it_learned(tmp_path):
    """DataCollatorForSeq2Seq makes decoder_input_ids with the model; evaluation generates."""
    tokenizer = tiny_tokenizer()
    model = language_model(
        "Seq2Seq", initializer_range=0.05, decoder_start_token_id=2, eos_token_id=3, pad_token_id=0, bos_token_id=2
    )
    pairs = [("word5 word6", "word7 word8 word9"), ("word10 word11 word12", "word13"), ("word14", "word15 word16")]
    rows = []
    for source, target in pairs:
        labels = tokenizer(target, add_special_tokens=False)["input_ids"] + [tokenizer.sep_token_id]
        rows.append({**tokenizer(source), "labels": labels})
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    inputs = collator([dict(row) for row in rows])
    assert inputs["labels"].tolist() == [[7, 8, 9, 3], [13, 3, -100, -100], [15, 16, 3, -100]]
    assert inputs["decoder_input_ids"].tolist() == [[2, 7, 8, 9], [2, 13, 3, 0], [2, 15, 16, 3]]
    assert model(**inputs).logits.shape == (3, 4, VOCAB)

    trainer = train(
        model, rows, tmp_path, Seq2SeqTrainer, collator, max_steps=60, save_strategy="no", predict_with_generate=True
    )
    assert losses(trainer)[-1] < 0.1
    predicted = trainer.predict(rows, max_length=8)
    for text, (_, target) in zip(predicted.predictions, pairs, strict=True):
        assert tokenizer.decode([token for token in text if token >= 0], skip_special_tokens=True) == target
    assert predicted.metrics["test_loss"] < 0.1
