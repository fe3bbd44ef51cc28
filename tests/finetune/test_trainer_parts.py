"""Protects the parts around Trainer: order, masking, weight decay, adapters, dropout, baselines."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from toys import wordpiece
from transformers import BertForMaskedLM, T5Config, T5ForConditionalGeneration

from finetune.baselines import quick_baselines
from finetune.kinds.sequence import SingleLabel
from finetune.settings import parse_settings
from finetune.tasks import open_task
from finetune.train import Training
from finetune.trainer import FineTuner, LengthGroupedOrder, MaskedTexts, with_adapters


@pytest.fixture
def training(toy):
    """What all seeds of a run share, with more flags."""

    def make(*flags: str) -> Training:
        places = ["--model", toy / "stock", "--task", "sst2", "--data", toy / "glue", "--output", "unused"]
        settings = parse_settings([*map(str, places), "--learning_rate", "5e-3", "--epochs", "1", *flags])
        task, splits = open_task(settings)
        checkpoint = task.kind.open(settings.model, dropout=settings.dropout)
        rows = (task.kind.encode(split, checkpoint) for split in (splits.train, splits.validation))
        return Training(task.kind, checkpoint, settings, *rows)

    return make


def test_weight_decay_is_on_matrices_only(training, tmp_path):
    made = training("--weight_decay", "0.1")
    model = made.build(1)
    groups = FineTuner(made, model, tmp_path).create_optimizer().param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    expected = {name: 0.1 if parameter.ndim >= 2 else 0.0 for name, parameter in model.named_parameters()}
    assert {name: decay[id(parameter)] for name, parameter in model.named_parameters()} == expected


def test_batches_hold_similar_lengths_and_come_in_no_order_of_length():
    """Hardly any padding; long and short batches alternate; a short batch is the last."""
    lengths = np.random.default_rng(0).integers(3, 60, size=1000).tolist()
    order = list(LengthGroupedOrder(lengths, batch_size=16, seed=1))
    assert sorted(order) == list(range(1000))
    batches = np.split(np.array(lengths)[order], range(16, 1000, 16))
    padded = sum(len(batch) * batch.max() for batch in batches)
    assert padded < 1.1 * sum(lengths)
    longest = [batch.max() for batch in batches[:-1]]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_token_masking_hides_its_share_and_no_special_token():
    tokenizer, ids = wordpiece(), [2, *range(5, 45), 3]
    rows = MaskedTexts([{"input_ids": ids, "labels": 1}], tokenizer, 0.25)
    drawn = np.array([rows[0]["input_ids"] for _ in range(500)])
    hidden = drawn == tokenizer.mask_token_id
    assert abs(hidden[:, 1:-1].mean() - 0.25) < 0.01
    assert not hidden[:, [0, -1]].any()
    assert (drawn[~hidden] == np.tile(ids, (500, 1))[~hidden]).all()
    assert rows.rows[0]["input_ids"] == ids, "the text itself must not change"
    assert MaskedTexts([{"input_ids": ids, "labels": 1}], tokenizer, 0.0)[0]["input_ids"] == ids
    choices = MaskedTexts([{"input_ids": [ids, ids], "labels": 1}], tokenizer, 0.25)[0]["input_ids"]
    assert len(choices) == 2 and choices[0] != choices[1]


def test_from_scratch_takes_the_shape_but_not_the_weights(training, toy):
    made = training()
    stored = BertForMaskedLM.from_pretrained(toy / "stock").state_dict()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    loaded, fresh = (made.using(from_scratch=choice).build(1).state_dict() for choice in (False, True))
    assert torch.equal(loaded[name], stored[name])
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in loaded.items()}
    assert not torch.equal(fresh[name], stored[name])
    assert not torch.equal(fresh[name], made.using(from_scratch=True).build(2).state_dict()[name])


def test_dropout_sets_every_field_the_config_has_and_no_other(training):
    kept, changed = training().checkpoint.config, training("--dropout", "0.3").checkpoint.config
    assert (kept.hidden_dropout_prob, kept.attention_probs_dropout_prob, kept.classifier_dropout) == (0.1, 0.1, None)
    assert changed.hidden_dropout_prob == changed.attention_probs_dropout_prob == changed.classifier_dropout == 0.3
    assert not hasattr(changed, "mlp_dropout")


def test_adapters_and_head_alone_are_trained_and_merge_to_the_same_function(training):
    made = training()
    adapted = with_adapters(made.build(1), 4).eval()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".classifier." in name or ".pooler." in name for name in trained)
    head = [name for name in trained if "lora_" not in name]
    assert len(head) == 4 and len(trained) == 4 + 2 * 6, "weight and bias of both; query, key, value and three dense"
    for parameter in (p for name, p in adapted.named_parameters() if name in trained):
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([made.train.rows[0]["input_ids"]])
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        torch.testing.assert_close(adapted.merge_and_unload()(input_ids=ids).logits, before)


def test_adapters_of_a_model_that_is_its_own_trunk():
    """T5: the trunk has no prefix, and the head is the transposed embeddings, which stay as they are."""
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    adapted = with_adapters(T5ForConditionalGeneration(T5Config(vocab_size=64, **shape)), 2)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or "lm_head" in name for name in trained), trained


@dataclass(frozen=True)
class Counting(SingleLabel):
    """Notes how many examples are scored."""

    def score_predictions(self, predictions, examples):
        ASKED.append(len(examples))
        return super().score_predictions(predictions, examples)


ASKED: list[int] = []


def test_baselines_choose_on_validation_only(toy):
    places = ["--model", "x", "--task", "sst2", "--data", str(toy / "glue"), "--output", "unused"]
    _, splits = open_task(parse_settings(places))
    kind = Counting(("negative", "positive"))
    majority, _ = quick_baselines(kind, splits)
    assert [40, 60, *[40] * 5, 40, 60] == ASKED, "five values of C on validation; the reported split once per method"
    labels, training = ([e.label for e in rows] for rows in (splits.reported["dev"], splits.train))
    expected = labels.count(max(set(training), key=training.count)) / len(labels)
    assert majority.scores["dev"]["accuracy"]["mean"] == pytest.approx(expected)
