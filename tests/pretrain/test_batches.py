"""Protects that a batch is a pure function of (seed, step), whoever computes it, and that documents stay apart."""

import dataclasses
import pickle
from itertools import chain, pairwise
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from families import gradients, language_model, tiny_config
from pretraining import make_tokenizer, pack
from torch.nn.functional import scaled_dot_product_attention

import hf_tiny_transformer as ours
from pretrain import varlen
from pretrain.batches import BatchSource, make_objective
from pretrain.data.packed import open_packed, positions_since
from pretrain.data.tokenizer import vocabulary_facts
from pretrain.loop import count_targets, forward
from pretrain.objectives.masking import IGNORED
from pretrain.recipe import Recipe, Stage
from pretrain.schedule import learning_rate_factor, plan_stages

OBJECTIVES = ["mlm", "mlm_nsp", "next_token", "span_corruption"]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return make_tokenizer(documents, "bert")


@pytest.fixture(scope="module")
def packed(documents, tokenizer, tmp_path_factory):
    path = pack(documents, tokenizer, tmp_path_factory.mktemp("packed"))
    return open_packed(path, len(tokenizer), tokenizer.cls_token_id, block_size=32, what="training")


@pytest.fixture(scope="module")
def facts(tokenizer):
    facts = vocabulary_facts(tokenizer)
    return dataclasses.replace(facts, span_ids=facts.ordinary_ids[:8])


def source(packed, facts, seed=1, objective="mlm", masking="whole_word"):
    return BatchSource(make_objective(objective, packed, facts, masking=masking), seed=seed)


def plans(*stages):
    recipe = Recipe(family="encoder", model={}, stages=list(stages), vocab_size=120)
    return plan_stages(recipe, 100)


def merged(micro_batches):
    """Rows sorted, so that batches split differently compare."""
    rows = chain.from_iterable(batch["input_ids"].tolist() for batch in micro_batches)
    return sorted(rows)


def test_a_batch_depends_on_seed_and_step_only(packed, facts):
    (plan,) = plans(Stage(1.0, 32, 8, 0.25))
    used, fresh = source(packed, facts), source(packed, facts)
    for step in range(40):  # the used one has a history, the fresh one has none
        list(used.micro_batches(plan, step, rank=0, world=1, size=8))
    for step in (3, 39):
        (a,), (b,) = (list(s.micro_batches(plan, step, rank=0, world=1, size=8)) for s in (used, fresh))
        assert all(torch.equal(a[name], b[name]) for name in a)
    (other,) = source(packed, facts, seed=2).micro_batches(plan, 3, rank=0, world=1, size=8)
    (mine,) = fresh.micro_batches(plan, 3, rank=0, world=1, size=8)
    assert not torch.equal(other["input_ids"], mine["input_ids"])


def test_processes_and_micro_batches_only_divide_the_work(packed, facts):
    (plan,) = plans(Stage(1.0, 32, 12, 0.25))
    whole = merged(source(packed, facts).micro_batches(plan, 5, rank=0, world=1, size=12))
    in_pieces = merged(source(packed, facts).micro_batches(plan, 5, rank=0, world=1, size=5))
    on_three = merged(
        chain.from_iterable(source(packed, facts).micro_batches(plan, 5, rank=r, world=3, size=4) for r in range(3))
    )
    assert whole == in_pieces == on_three


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_does_not_depend_on_the_others(packed, facts, objective, masking):
    """Not even where rows differ in length: span corruption pads them to the longest."""
    batches, rows = source(packed, facts, objective=objective, masking=masking), np.array([(0, 3), (1, 9), (0, 9)])
    whole = batches.build(rows, 0, 32, 0.25)
    assert not torch.equal(whole["input_ids"][1], whole["input_ids"][2]) or objective == "next_token"
    answers = []
    for i, row in enumerate(whole["input_ids"]):
        alone = batches.build(rows[i : i + 1], 0, 32, 0.25)
        length = alone["input_ids"].shape[1]
        assert torch.equal(row[:length], alone["input_ids"][0]) and (row[length:] == facts.pad_id).all()
        answers.append(alone["labels"])
    assert torch.equal(whole["labels"], torch.cat(answers))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_builds_the_same_batches(packed, facts, method):
    """As a worker of torch's DataLoader does. The file is mapped again: its tokens are not in the pickle."""
    assert len(pickle.dumps(packed)) < 500
    rows = np.array([(0, 3), (1, 9)])
    with get_context(method).Pool(1) as pool:
        for objective in OBJECTIVES:
            batches = source(packed, facts, objective=objective)
            here, there = batches.build(rows, 0, 32, 0.25), pool.apply(batches.build, (rows, 0, 32, 0.25))
            assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_an_epoch_reads_every_block_once(packed, facts):
    (plan,) = plans(Stage(1.0, 32, 1, 0.25))
    batches = source(packed, facts)
    size = batches.objective.count(32)
    read = [batches.rows_of_step(plan, step)[0] for step in range(2 * size)]
    assert sorted(row for epoch, row in read if epoch == 0) == list(range(size))
    assert sorted(row for epoch, row in read if epoch == 1) == list(range(size))
    assert [row for _, row in read[:size]] != [row for _, row in read[size:]]


def test_a_step_may_read_several_epochs(packed, facts):
    batches = source(packed, facts)
    size = batches.objective.count(32)
    ones, big = plans(Stage(1.0, 32, 1, 0.25))[0], plans(Stage(1.0, 32, 2 * size + 3, 0.25))[0]
    assert len(batches.rows_of_step(big, 1)) == 2 * size + 3
    read = [batches.rows_of_step(ones, step)[0].tolist() for step in range(4 * size + 6)]
    assert np.concatenate([batches.rows_of_step(big, step) for step in (0, 1)]).tolist() == read


def test_labels_are_the_hidden_tokens_and_everything_else_is_untouched(packed, facts):
    (plan,) = plans(Stage(1.0, 32, 8, 0.25))
    batches = source(packed, facts)
    (batch,) = batches.micro_batches(plan, 0, rank=0, world=1, size=8)
    original = packed.blocks(np.array([row for _, row in batches.rows_of_step(plan, 0)]), 32)
    flat = original.reshape(-1)
    positions, labels = batch["target_positions"].numpy(), batch["labels"].numpy()
    assert len(positions) == 8 * round(0.25 * 32)
    assert (labels == flat[positions]).all()
    untouched = np.ones(flat.size, dtype=bool)
    untouched[positions] = False
    assert (batch["input_ids"].numpy().reshape(-1)[untouched] == flat[untouched]).all()
    assert not facts.is_special[flat[positions]].any()


def test_positions_restart_at_every_document():
    blocks = np.array([[7, 8, 3, 2, 9, 3, 2, 5]])  # 2 is [CLS], 3 is [SEP]; the row begins inside a document
    assert positions_since(blocks == 2).tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]


def test_segment_pairs_are_half_true_continuations(packed, facts, tokenizer):
    (plan,) = plans(Stage(1.0, 32, 64, 0.2))
    batches = source(packed, facts, objective="mlm_nsp")
    stream = packed.tokens.tolist()
    text = " ".join(map(str, stream))
    labels = []
    for step in range(4):
        (batch,) = batches.micro_batches(plan, step, rank=0, world=1, size=64)
        ids = batch["input_ids"].clone().reshape(-1)
        known = batch["labels"] != IGNORED
        ids[batch["target_positions"][known]] = batch["labels"][known]
        for row, types, attention, label in zip(
            ids.reshape(64, 32).tolist(),
            batch["token_type_ids"].tolist(),
            batch["attention_mask"].tolist(),
            batch["next_sentence_label"].tolist(),
            strict=True,
        ):
            length = sum(attention)
            assert row[0] == tokenizer.cls_token_id
            assert row[length - 1] == tokenizer.sep_token_id
            border = row.index(tokenizer.sep_token_id)
            assert types[:length] == [0] * (border + 1) + [1] * (length - border - 1)
            a, b = row[1:border], row[border + 1 : length - 1]
            follows = f" {' '.join(map(str, a + b))} " in f" {text} "
            if label == 0:
                assert follows
            labels.append(label)
    assert 0.4 < np.mean(labels) < 0.6


def test_stages_cut_the_run_and_change_the_shape(packed, facts):
    short, long = plans(Stage(0.7, 16, 8, 0.3), Stage(0.3, 32, 4, 0.15))
    assert (short.first, short.last, long.first, long.last) == (0, 70, 70, 100)
    (batch,) = source(packed, facts).micro_batches(long, 70, rank=0, world=1, size=4)
    assert batch["input_ids"].shape == (4, 32)


def test_learning_rate_rises_stays_and_falls_to_zero():
    factors = [learning_rate_factor(step, 1000, warmup=0.1, decay=0.4) for step in range(1000)]
    assert factors[0] < 0.01
    assert factors[100:599] == [1.0] * 499
    assert 0 < factors[-1] < 0.002
    assert all(b <= a for a, b in pairwise(factors[599:]))


@pytest.mark.parametrize("objective", ["mlm", "next_token"])
def test_document_bounds_replace_the_mask(packed, facts, objective, monkeypatch):
    """Replaces torch's kernel, which needs a GPU (`benchmarks.gpu` compares it there); checks all around it."""

    def kernel(query, key, value, bounds, bounds_of_keys, longest, _, *, scale, window_size):
        assert bounds is bounds_of_keys and longest == 32 and bounds.dtype == torch.int32
        parts = []
        for first, last in pairwise(bounds.tolist()):
            q, k, v = (states[first:last].transpose(0, 1) for states in (query, key, value))
            causal = {(-1, 0): True, (-1, -1): False}[window_size]
            parts.append(scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    model = language_model("Encoder" if objective == "mlm" else "Decoder", vocab_size=120, max_position_embeddings=32)
    (plan,) = plans(Stage(1.0, 32, 6, 0.25 if objective == "mlm" else None))
    objective = make_objective(objective, packed, facts, masking="token")
    found = {}
    for attention in ("sdpa", varlen.NAME):
        model.set_attn_implementation(attention)
        source_of_it = BatchSource(objective, seed=1, bounds=attention == varlen.NAME)
        (batch,) = source_of_it.micro_batches(plan, 3, rank=0, world=1, size=6)
        found[attention] = gradients(model, **batch, num_items_in_batch=count_targets(batch)[0], skip_logits=True)
    assert (len(batch["cu_seq_lens_q"]) - 1) % 6 == 0 and batch["cu_seq_lens_q"][-1] == 6 * 32
    for name, gradient in found["sdpa"].items():
        torch.testing.assert_close(found[varlen.NAME][name], gradient, msg=name)


def test_the_next_sentence_loss_counts_rows_however_they_are_divided(packed, facts):
    """Micro-batches of different sizes and numbers of targets add up to the loss of the whole, computed by hand."""
    torch.manual_seed(0)
    model = ours.TinyTransformerBertForPreTraining(tiny_config("Bert", vocab_size=120)).eval()
    (plan,) = plans(Stage(1.0, 32, 12, 0.9))
    batches = source(packed, facts, objective="mlm_nsp")
    (whole,) = batches.micro_batches(plan, 5, rank=0, world=1, size=12)
    assert (whole["labels"] == IGNORED).any(), "rows differ in their number of targets"
    outputs = model(**{name: whole[name] for name in whole if name not in ("labels", "next_sentence_label")})
    tokens = torch.nn.functional.cross_entropy(outputs.prediction_logits, whole["labels"])
    pairs = torch.nn.functional.cross_entropy(outputs.seq_relationship_logits, whole["next_sentence_label"])
    totals = count_targets(whole)
    for size in (12, 5, 1):
        parts = batches.micro_batches(plan, 5, rank=0, world=1, size=size)
        torch.testing.assert_close(sum(forward(model, part, totals).loss for part in parts), tokens + pairs)
