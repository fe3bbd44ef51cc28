"""Protects the objectives of Decoder and Seq2Seq: their targets, and that documents are independent."""

import numpy as np
import pytest
import torch
from pretraining import make_tokenizer, pack
from transformers import AutoTokenizer

from hf_tiny_transformer import TinyTransformerSeq2SeqConfig, TinyTransformerSeq2SeqForConditionalGeneration
from pretrain.data.packed import PackedTokens, open_packed
from pretrain.data.tokenizer import SPANS, vocabulary_facts
from pretrain.objectives.masking import IGNORED
from pretrain.objectives.next_token import NextToken
from pretrain.objectives.random_rows import RandomRows
from pretrain.objectives.span_corruption import MEAN_SPAN, SpanCorruption, random_spans

LENGTH = 64


@pytest.fixture(scope="module")
def tokenizer(documents):
    return make_tokenizer(documents, "seq2seq", 180)


@pytest.fixture(scope="module")
def facts(tokenizer):
    return vocabulary_facts(tokenizer)


@pytest.fixture(scope="module")
def packed(documents, tokenizer, tmp_path_factory):
    path = pack(documents, tokenizer, tmp_path_factory.mktemp("packed"))
    return open_packed(path, len(tokenizer), tokenizer.cls_token_id, block_size=LENGTH, what="training")


def rows(count):
    return RandomRows(0, np.arange(count))


def tensors(batch):
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def cut_at_restarts(ids, positions):
    """The documents of one row."""
    starts = np.flatnonzero(np.asarray(positions) == 0)
    return [part.tolist() for part in np.split(np.asarray(ids), starts[1:])]


def test_next_tokens_are_those_of_the_same_document(facts):
    data = PackedTokens(np.array([2, 7, 8, 3, 2, 9, 3, 2], dtype=np.uint16), cls_id=2)
    batch = NextToken(data, facts).build(np.array([0]), rows(1), 8, None)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    asked = dict(zip(batch["target_positions"].tolist(), batch["labels"].tolist(), strict=True))
    assert asked == {0: 7, 1: 8, 2: 3, 3: IGNORED, 4: 9, 5: 3, 6: IGNORED}


def test_next_token_rows_are_the_blocks(packed, facts):
    batch = tensors(NextToken(packed, facts).build(np.array([3, 0]), rows(2), LENGTH, None))
    assert batch["input_ids"].tolist() == packed.blocks(np.array([3, 0]), LENGTH).tolist()
    flat = batch["input_ids"].reshape(-1)
    known = batch["labels"] != IGNORED
    assert torch.equal(flat[batch["target_positions"][known] + 1], batch["labels"][known])


@pytest.mark.parametrize("rate", [0.15, 0.5, 0.9])
def test_noise_has_a_fixed_count_in_a_fixed_number_of_spans(rate):
    lengths = np.array([0, 1, 2, 5, 20, 128, 512] * 20)
    texts = np.split(random_spans(lengths, rate, 64, rows(len(lengths))), np.cumsum(lengths))
    assert len(texts.pop()) == 0, "what follows the last text"
    for length, noise in zip(lengths.tolist(), texts, strict=True):
        noisy = round(length * rate)
        spans = int((np.diff(noise.astype(int), prepend=0) == 1).sum())
        assert len(noise) == length
        if noise.any():
            assert noise.sum() == noisy
            assert spans == min(max(1, round(noisy / MEAN_SPAN)), length - noisy, 64)
            assert not noise[0], "a text begins with something to read"
        else:
            assert noisy == 0 or noisy == length


def test_every_place_is_equally_likely_to_be_hidden():
    noise = random_spans(np.full(4000, 100), 0.15, 64, rows(4000)).reshape(4000, 100)
    assert (noise.sum(axis=1) == 15).all()
    middle = noise.mean(axis=0)[20:90]  # a row begins with a kept span and ends with noise: the last place is hidden
    assert abs(middle.mean() - 0.13) < 0.01
    assert middle.std() < 0.01


def test_what_is_read_and_what_is_written_make_the_text_again(packed, facts):
    """Replacing each sentinel by its span restores the documents, in order and unmixed."""
    indices = np.arange(packed.num_blocks(LENGTH))
    batch = tensors(SpanCorruption(packed, facts).build(indices, rows(len(indices)), LENGTH, 0.15))
    labels = torch.full(batch["decoder_input_ids"].shape, IGNORED).reshape(-1)
    labels[batch["target_positions"]] = batch["labels"]
    labels = labels.view(batch["decoder_input_ids"].shape)
    hidden = 0
    for row, block in enumerate(packed.blocks(indices, LENGTH)):
        read = cut_at_restarts(batch["input_ids"][row], batch["position_ids"][row])
        written = cut_at_restarts(labels[row], batch["decoder_position_ids"][row])
        given = cut_at_restarts(batch["decoder_input_ids"][row], batch["decoder_position_ids"][row])
        starts = np.flatnonzero(block == facts.cls_id)
        documents = [part[part != facts.cls_id].tolist() for part in np.split(block, starts)]
        documents = [part for part in documents if part]
        assert len(written) == len(documents)
        assert len(read) in (len(documents), len(documents) + 1), "padding is the last document of the reader"
        for text, corrupted, answer, decoder_input in zip(documents, read, written, given, strict=False):
            answer = [token for token in answer if token != IGNORED]
            assert decoder_input[0] == facts.cls_id
            if answer:
                assert answer[-1] == facts.sep_id
                assert decoder_input[1 : len(answer)] == answer[:-1], "the decoder reads what it should have written"
            spans = {}
            for token in answer[:-1]:
                if token in facts.span_ids:
                    current = spans.setdefault(token, [])
                else:
                    current.append(token)
                    hidden += 1
            assert list(spans) == facts.span_ids[: len(spans)].tolist(), "numbered from 0 in every document"
            restored = []
            for token in corrupted:
                restored.extend(spans.pop(token) if token in spans else [token])
            assert restored == text
            assert not spans
    ordinary = (~facts.is_special[packed.blocks(indices, LENGTH)]).sum()
    assert hidden == pytest.approx(0.15 * ordinary, rel=0.03)


def test_a_neighbouring_document_changes_no_answer(packed, facts):
    """Cross-attention too: the n-th answer asks the n-th document."""
    torch.manual_seed(0)
    config = TinyTransformerSeq2SeqConfig(
        vocab_size=len(facts.is_special),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.2,
    )
    model = TinyTransformerSeq2SeqForConditionalGeneration(config).eval()
    blocks = packed.blocks(np.arange(packed.num_blocks(LENGTH)), LENGTH)
    row = next(
        i for i, block in enumerate(blocks) if 10 < np.flatnonzero(block == facts.cls_id).max(initial=0) < LENGTH - 15
    )
    batch = tensors(SpanCorruption(packed, facts).build(np.array([row]), rows(1), LENGTH, 0.15))
    batch = {name: batch[name] for name in batch if name not in ("labels", "target_positions")}
    last = int((batch["position_ids"][0] == 0).nonzero()[-1])
    answers = (batch["decoder_position_ids"][0] == 0).nonzero().flatten()
    changed = dict(batch, input_ids=batch["input_ids"].clone())
    changed["input_ids"][0, last:] = 7
    with torch.no_grad():
        before, after = model(**batch).logits[0], model(**changed).logits[0]
    assert torch.equal(before[: answers[-1]], after[: answers[-1]])
    assert not torch.equal(before[answers[-1] :], after[answers[-1] :])


def test_every_family_writes_its_texts_as_its_model_reads_them(documents, tmp_path):
    """A decoder's prompt ends where writing begins; a Seq2Seq text carries no [CLS], which only starts answers."""
    expected = {
        "encoder": "[CLS] the music [SEP]",
        "bert": "[CLS] the music [SEP]",
        "decoder": "[CLS] the music",
        "seq2seq": "the music [SEP]",
    }
    for family, text in expected.items():
        make_tokenizer(documents, family, 180).save_pretrained(tmp_path / family)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / family)
        assert tokenizer.decode(tokenizer("the music")["input_ids"]) == text
        assert (tokenizer.eos_token == "[SEP]") == (family in ("decoder", "seq2seq"))
        assert (tokenizer.padding_side == "left") == (family == "decoder")
    assert tokenizer("what [SPAN0] here")["input_ids"].count(tokenizer.convert_tokens_to_ids(SPANS[0])) == 1
    assert tokenizer.decode(tokenizer("the [SPAN3] .")["input_ids"], skip_special_tokens=True) == "the."
