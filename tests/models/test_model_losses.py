"""Protects losses and gradients: accumulation, activation checkpointing, autocast, loss without logits."""

import pytest
import torch
from families import (
    BACKENDS,
    CLASSIFIERS,
    ENCODERS,
    GENERATORS,
    LANGUAGE_MODELS,
    LENGTH,
    VOCAB,
    assert_close,
    batch,
    every_family,
    every_lm_head,
    every_third,
    gradients,
    language_model,
    output_ids,
    real,
    tiny_model,
    training_batch,
)
from torch import nn
from torch.nn.functional import cross_entropy

from hf_tiny_transformer import token_loss


@every_family
def test_language_model_losses(family: str):
    """The mean over the targets; a Decoder compares each position with the label of the next."""
    model, inputs = language_model(family), training_batch(family)
    outputs = model(**inputs)
    logits, labels = outputs.logits, inputs["labels"]
    if family == "Decoder":
        logits, labels = logits[:, :-1], labels[:, 1:]
    assert outputs.logits.shape == (2, LENGTH, VOCAB)
    assert_close(outputs.loss, cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert "loss" not in model(**{name: value for name, value in inputs.items() if name != "labels"})


def test_a_seq2seq_makes_decoder_input_ids_from_labels():
    """Shifted behind the start token, with padding instead of -100; DataCollatorForSeq2Seq relies on it."""
    model, inputs = language_model("Seq2Seq", decoder_start_token_id=7), training_batch("Seq2Seq")
    shifted = model.prepare_decoder_input_ids_from_labels(torch.tensor([[3, 4, 5], [6, 2, -100], [8, -100, -100]]))
    assert shifted.tolist() == [[7, 3, 4], [7, 6, 2], [7, 8, 0]]
    labels = inputs["labels"]
    given = model.prepare_decoder_input_ids_from_labels(labels)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    by_itself = model(**source, labels=labels)
    assert_close(by_itself.loss, model(**source, decoder_input_ids=given, labels=labels).loss)
    assert_close(by_itself.loss, cross_entropy(by_itself.logits.flatten(0, 1), labels.flatten()))
    for missing in ({"decoder_start_token_id": None}, {"pad_token_id": None}):
        with pytest.raises(ValueError, match=r"decoder_start_token_id.*pad_token_id"):
            language_model("Seq2Seq", **missing)(**source, labels=labels)


@every_lm_head
def test_target_positions_give_the_dense_loss(family: str, task: str):
    """The head runs on the targets only."""
    model, inputs = tiny_model(family, task), training_batch(family, task)
    labels = inputs.pop("labels")
    # sparse labels are not shifted, so that a Decoder's are shifted here
    compared = nn.functional.pad(labels[:, 1:], (0, 1), value=-100) if family == "Decoder" else labels
    targets = (compared.flatten() != -100).nonzero().flatten()
    dense = model(**inputs, labels=labels)
    sparse = {**inputs, "labels": compared.flatten()[targets], "target_positions": targets}
    assert_close(model(**sparse)[1], dense[1].flatten(0, 1)[targets])
    assert_close(model(**sparse).loss, dense.loss)
    assert_close(gradients(model, **sparse), gradients(model, **inputs, labels=labels))


@pytest.mark.parametrize("family", GENERATORS)
def test_logits_to_keep(family: str):
    """A number of last positions, or the positions themselves."""
    model, inputs = language_model(family), batch(family)
    with torch.no_grad():
        full = model(**inputs).logits
        assert_close(model(**inputs, logits_to_keep=1).logits, full[:, -1:])
        assert_close(model(**inputs, logits_to_keep=4).logits, full[:, -4:])
        places = torch.tensor([0, 3, 7])
        assert_close(model(**inputs, logits_to_keep=places).logits, full[:, places])
        assert_close(model(**inputs, logits_to_keep=0).logits, full)


def test_logits_to_keep_with_their_labels():
    """Seq2Seq does not shift, so that the labels of the kept positions can be passed."""
    model, inputs = language_model("Seq2Seq"), training_batch("Seq2Seq")
    labels = inputs.pop("labels")
    kept = model(**inputs, labels=labels[:, -4:].contiguous(), logits_to_keep=4).loss
    assert_close(kept, model(**inputs, labels=labels.index_fill(1, torch.arange(LENGTH - 4), -100)).loss)


@every_lm_head
def test_gradients_of_micro_batches_add_up(family: str, task: str):
    """With `num_items_in_batch` of the whole batch."""
    model, inputs = tiny_model(family, task), training_batch(family, task)
    if task != "ForPreTraining":  # its next-sentence loss is weighted by the number of targets
        inputs["labels"] = torch.where(real(inputs), output_ids(inputs), -100)  # the second text has fewer targets
    whole = gradients(model, **inputs)
    targets = inputs["labels"][:, 1:] if family == "Decoder" else inputs["labels"]
    count = (targets != -100).sum()
    parts = [
        gradients(model, **{name: tensor[row : row + 1] for name, tensor in inputs.items()}, num_items_in_batch=count)
        for row in range(2)
    ]
    assert ((targets[0] != -100).sum() != (targets[1] != -100).sum()) == (task != "ForPreTraining")
    for name, gradient in whole.items():
        assert_close(parts[0][name] + parts[1][name], gradient)


@every_family
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(family: str, reentrant: bool):
    """Also in the encoder of a Seq2Seq, through the checkpointed layers of the decoder."""
    model, inputs = language_model(family).train(), training_batch(family)
    first = model.model.decoder.layers[0] if family == "Seq2Seq" else model.model.layers[0]
    calls = []
    first.attention.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients(model, **inputs)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    got = gradients(model, **inputs)
    assert got.keys() == expected.keys()
    assert_close(got, expected)
    assert len(calls) == 3  # once without; with it, again in the backward pass
    model.gradient_checkpointing_disable()
    gradients(model, **inputs)
    assert len(calls) == 4


@every_family
@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(family: str, backend: str, dtype: torch.dtype):
    """Half-precision products of fp32 weights: about the same loss and gradients."""
    model, inputs = language_model(family, attn_implementation=backend).train(), training_batch(family)
    expected, exact = model(**inputs).loss, gradients(model, **inputs)
    with torch.autocast("cpu", dtype):
        loss, rough = model(**inputs).loss, gradients(model, **inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    for name, gradient in rough.items():
        assert gradient.dtype == torch.float32 and (gradient - exact[name]).norm() < 0.1 * exact[name].norm() + 1e-2


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_classifier_losses(family: str):
    """Single-label, multi-label and regression, by the config or by the labels."""
    inputs = batch(family)
    cases = [
        (3, None, torch.tensor([2, 0]), cross_entropy),
        (3, "multi_label_classification", torch.rand(2, 3), nn.functional.binary_cross_entropy_with_logits),
        (1, None, torch.tensor([0.3, -2.0]), lambda logits, labels: nn.functional.mse_loss(logits[:, 0], labels)),
    ]
    for num_labels, problem_type, labels, expected in cases:
        model = tiny_model(family, "ForSequenceClassification", num_labels=num_labels, problem_type=problem_type)
        outputs = model(**inputs, labels=labels)
        assert outputs.logits.shape == (2, num_labels)
        assert_close(outputs.loss, expected(outputs.logits, labels))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_classifier_depends_on_every_token_and_not_on_padding(family: str):
    """A Decoder finds the last token with padding on either side."""
    model, inputs = tiny_model(family, "ForSequenceClassification"), batch(family)
    count = inputs["attention_mask"][1].sum()
    alone = inputs["input_ids"][1:, :count]
    with torch.no_grad():
        expected = model(alone).logits
        assert_close(model(**inputs).logits[1:], expected)
        if family == "Decoder":  # with rotary positions only distances matter
            rolled = {name: value.roll(LENGTH - count.item(), dims=1)[1:] for name, value in inputs.items()}
            assert_close(model(**rolled).logits, expected)
        for place in range(count):
            changed = alone.clone()
            changed[:, place] = changed[:, place] % (VOCAB - 1) + 1
            assert not torch.allclose(model(changed).logits, expected, atol=1e-4), place


@pytest.mark.parametrize("family", ENCODERS)
def test_token_question_and_choice_losses(family: str):
    inputs = batch(family)
    tags = torch.randint(0, 2, (2, LENGTH)).masked_fill(inputs["attention_mask"] == 0, -100)
    outputs = tiny_model(family, "ForTokenClassification")(**inputs, labels=tags)
    assert_close(outputs.loss, cross_entropy(outputs.logits.flatten(0, 1), tags.flatten()))

    starts, ends = torch.tensor([1, LENGTH + 3]), torch.tensor([4, 2])  # the second start is outside the text: ignored
    model = tiny_model(family, "ForQuestionAnswering")
    outputs = model(**inputs, start_positions=starts, end_positions=ends)
    expected = cross_entropy(outputs.start_logits[:1], starts[:1]) + cross_entropy(outputs.end_logits, ends)
    assert_close(outputs.loss, expected / 2)

    choices = batch(family, "ForMultipleChoice")
    outputs = tiny_model(family, "ForMultipleChoice")(**choices, labels=torch.tensor([2, 0]))
    assert outputs.logits.shape == (2, 3)
    assert_close(outputs.loss, cross_entropy(outputs.logits, torch.tensor([2, 0])))


@every_family
def test_a_language_model_overfits_one_batch(family: str):
    model = language_model(family, initializer_range=0.02).train()
    inputs = batch(family)
    if family == "Seq2Seq":  # decoder_input_ids are made from the labels
        inputs = {"labels": inputs.pop("decoder_input_ids"), "input_ids": inputs["input_ids"]}
    else:
        inputs["labels"] = every_third(inputs["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert abs(losses[0] - torch.tensor(float(VOCAB)).log().item()) < 0.5  # a uniform guess
    assert losses[-1] < 0.1


@pytest.mark.parametrize(("family", "task"), [(family, task) for family, task in LANGUAGE_MODELS.items()])
def test_dropout_applies_in_training_only(family: str, task: str):
    names = (
        ["hidden_dropout_prob", "attention_probs_dropout_prob"]
        if family == "Bert"
        else ["embedding_dropout", "attention_dropout", "mlp_dropout"]
    )
    inputs = batch(family)
    plain = tiny_model(family, task)
    with torch.no_grad():
        for name in names:
            model = tiny_model(family, task, **{name: 0.5})
            model.load_state_dict(plain.state_dict())
            assert_close(model(**inputs).logits, plain(**inputs).logits)
            model.train()
            first, second = model(**inputs).logits, model(**inputs).logits
            assert not torch.allclose(first, second, atol=1e-3), name


@every_lm_head
@pytest.mark.parametrize("rows_at_once", [1, 5, 1000])
def test_skip_logits_gives_the_same_loss_and_gradients(family: str, task: str, rows_at_once: int, monkeypatch):
    """For any chunk size: dense, with target_positions, and with num_items_in_batch."""
    monkeypatch.setattr(token_loss, "CPU_CHUNK", rows_at_once * VOCAB)
    monkeypatch.setattr(token_loss, "CPU_SLICE", 7)
    model, inputs = tiny_model(family, task), training_batch(family, task)
    inputs["labels"] = torch.where(real(inputs), output_ids(inputs), -100)
    for extra in ({}, {"num_items_in_batch": torch.tensor(50)}):
        plain, skipped = model(**inputs, **extra), model(**inputs, **extra, skip_logits=True)
        assert_close(skipped.loss, plain.loss)
        assert plain[1].shape == (2, LENGTH, VOCAB)
        assert not {"logits", "prediction_logits"} & set(skipped)
        assert_close(gradients(model, **inputs, **extra, skip_logits=True), gradients(model, **inputs, **extra))
    labels = inputs.pop("labels").flatten()
    targets = torch.tensor([2, 3, 9])
    sparse = {**inputs, "labels": labels[targets], "target_positions": targets}
    assert_close(gradients(model, **sparse, skip_logits=True), gradients(model, **sparse))


def test_skip_logits_in_extreme_cases():
    """Without labels an error; under autocast about the same loss; for a probability of zero a finite loss."""
    model, inputs = language_model("Encoder"), training_batch("Encoder")
    with pytest.raises(ValueError, match="labels"):
        model(input_ids=inputs["input_ids"], skip_logits=True)
    expected = model(**inputs, skip_logits=True).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = model(**inputs, skip_logits=True).loss
        halved.backward()
    assert halved.dtype == torch.float
    assert abs(halved - expected) < 0.02
    assert model.lm_head.weight.grad.dtype == torch.float
    with torch.no_grad():
        assert not model(**inputs, skip_logits=True).loss.requires_grad
        model.lm_head.bias[0] = 1e4
        inputs["labels"] = torch.ones_like(inputs["labels"])
        wrong_token = model(**inputs, skip_logits=True).loss
    assert 80 < wrong_token < 90


def test_shift_labels_are_used_unchanged():
    """`labels` then only request a loss."""
    model, inputs = language_model("Decoder"), training_batch("Decoder")
    shifted = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    expected = model(**inputs).loss
    inputs["labels"] = torch.ones_like(inputs["labels"])
    for skip_logits in (False, True):
        assert_close(model(**inputs, shift_labels=shifted, skip_logits=skip_logits).loss, expected)
