"""Protects generation: caches, padding, beams and assistants change the cost of a text, never the text."""

import itertools

import pytest
import torch
from families import (
    GENERATORS,
    POSITIONS,
    VOCAB,
    assert_close,
    batch,
    language_model,
    other_tokens,
    pad,
    random_ids,
    two_documents,
)
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

NEW, START = 8, 3
both = pytest.mark.parametrize("family", GENERATORS)
UNEVEN = {"num_hidden_layers": 1, "num_decoder_layers": 3}  # of a Seq2Seq: more layers write than read


def writer(family: str, **overrides) -> PreTrainedModel:
    """Untied, with large weights: else a random model follows each token by itself, and faults would not show."""
    if family == "Seq2Seq":
        overrides = {"decoder_start_token_id": START} | overrides
    return language_model(family, **{"tie_word_embeddings": False, "initializer_range": 0.4} | overrides)


def prompt_for(family: str, rows: int = 2, length: int = 5) -> dict[str, torch.Tensor]:
    ids = random_ids(rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def greedy(model: PreTrainedModel, inputs: dict, **settings) -> torch.Tensor:
    """The new tokens only."""
    texts = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings)
    return texts[:, -NEW:]


def argmax_loop(model: PreTrainedModel, inputs: dict[str, torch.Tensor], steps: int = NEW) -> torch.Tensor:
    """Greedy search as a textbook has it: all tokens anew at each step."""
    if model.config.is_encoder_decoder:
        written = torch.full((len(inputs["input_ids"]), 1), model.config.decoder_start_token_id)
    else:
        written = inputs["input_ids"]
    for _ in range(steps):
        if model.config.is_encoder_decoder:
            logits = model(**inputs, decoder_input_ids=written, use_cache=False).logits
        else:
            logits = model(input_ids=written, use_cache=False).logits
        written = torch.cat((written, logits[:, -1:].argmax(-1)), dim=1)
    return written[:, -steps:]


def log_probabilities(model: PreTrainedModel, inputs: dict, texts: torch.Tensor, new: int) -> torch.Tensor:
    """Of the last `new` tokens of each text, (B, new), from one pass without a cache."""
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    given = {**inputs, name: texts} if model.config.is_encoder_decoder else {name: texts}
    logits = model(**given, use_cache=False).logits[:, -new - 1 : -1]
    return logits.log_softmax(-1).gather(-1, texts[:, -new:, None])[..., 0]


@both
@torch.no_grad()
def test_greedy_search_is_the_argmax_loop(family: str):
    model, inputs = writer(family), prompt_for(family, rows=4)
    expected = argmax_loop(model, inputs)
    assert len(set(expected.flatten().tolist())) > 4  # no dull repetition, in which a fault would hide
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 1}):
        assert torch.equal(greedy(model, inputs, **settings), expected), settings


@torch.no_grad()
def test_a_seq2seq_decoder_may_have_another_depth():
    """The caches are as deep as the decoder, whatever the encoder is."""
    for depths in (UNEVEN, {"num_hidden_layers": 3, "num_decoder_layers": 1}):
        model, inputs = writer("Seq2Seq", **depths), prompt_for("Seq2Seq")
        expected = argmax_loop(model, inputs)
        for settings in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
            assert torch.equal(greedy(model, inputs, **settings), expected)
        cache = model(**inputs, decoder_input_ids=random_ids(2, 1)).past_key_values
        assert isinstance(cache, EncoderDecoderCache)
        assert len(cache.self_attention_cache.layers) == depths["num_decoder_layers"]
        beams = model.generate(**inputs, max_new_tokens=NEW, num_beams=3, do_sample=False)
        cached_anew = model.generate(**inputs, max_new_tokens=NEW, num_beams=3, do_sample=False, use_cache=False)
        assert torch.equal(beams, cached_anew)


@both
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 1, 3], [8, 1]])
@torch.no_grad()
def test_cached_logits_are_the_uncached_ones(family: str, chunks: list[int]):
    """Token by token or several at once, after a padded text or beside one."""
    model, inputs = language_model(family), batch(family)
    name = "decoder_input_ids" if family == "Seq2Seq" else "input_ids"
    ids = inputs.pop(name)
    inputs.pop(name.replace("input_ids", "attention_mask"))
    expected = model(**inputs, **{name: ids}, use_cache=False).logits
    past, steps = None, []
    for piece in ids.split(chunks, dim=1):
        outputs = model(**inputs, **{name: piece}, past_key_values=past, use_cache=True)
        past = outputs.past_key_values
        steps.append(outputs.logits)
    assert past.get_seq_length() == ids.shape[1]
    assert_close(torch.cat(steps, dim=1), expected)


@torch.no_grad()
def test_padding_stays_hidden_in_an_ongoing_cache():
    """The mask covers the past as well: other words under its padding change nothing, not even in the last bit."""
    model, inputs = language_model("Decoder"), pad(two_documents("Decoder"), "left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    more = random_ids(2, 3)
    whole_mask = torch.cat((mask, torch.ones(2, 3, dtype=torch.long)), dim=1)
    expected = model(torch.cat((ids, more), dim=1), attention_mask=whole_mask, use_cache=False).logits[:, -3:]
    continued = []
    for prompt in (ids, torch.where(mask.bool(), ids, other_tokens(ids))):
        past = model(prompt, attention_mask=mask).past_key_values
        continued.append(model(more, attention_mask=whole_mask, past_key_values=past).logits)
    assert_close(continued[0], expected)
    assert torch.equal(continued[0], continued[1])


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_left_padding_changes_no_text(positions: str):
    """`generate` counts positions by the mask; a short prompt beside a long one is continued as if alone."""
    model, documents = writer("Decoder", position_embedding_type=positions), two_documents("Decoder")
    together = greedy(model, pad(documents, "left"))
    for row, document in zip(together, documents, strict=True):
        alone = document | {"attention_mask": torch.ones_like(document["input_ids"])}
        assert torch.equal(row[None], greedy(model, alone))


@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_of_what_is_read_changes_no_text(positions: str, side: str):
    """On either side, where positions are distances: added ones count the padding on the left."""
    model = writer("Seq2Seq", position_embedding_type=positions, initializer_range=0.2)
    documents = [{"input_ids": document["input_ids"]} for document in two_documents("Seq2Seq")]
    inputs = pad(documents, side)
    together = greedy(model, inputs)
    logits = model(**inputs, decoder_input_ids=together).logits
    for row, document in enumerate(documents):
        assert torch.equal(together[row : row + 1], greedy(model, document))
        assert_close(logits[row : row + 1], model(**document, decoder_input_ids=together[row : row + 1]).logits)


@both
@pytest.mark.parametrize("length_penalty", [1.0, 0.3])
@torch.no_grad()
def test_beam_scores_are_mean_log_probabilities(family: str, length_penalty: float):
    """Texts end where they please: each score is the text's own sum over length ** penalty, the best first."""
    model, inputs = writer(family), prompt_for(family)
    ends = list(range(1, VOCAB, 5))  # many words may be the last one, so that texts of several lengths compete
    found = model.generate(
        **inputs,
        max_new_tokens=NEW,
        num_beams=6,
        num_return_sequences=6,
        length_penalty=length_penalty,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    start = 1 if family == "Seq2Seq" else inputs["input_ids"].shape[1]
    lengths = set()
    for index, (text, score) in enumerate(zip(found.sequences, found.sequences_scores, strict=True)):
        last = torch.isin(text[start:], torch.tensor(ends)).nonzero()
        length = last[0].item() + 1 if len(last) else len(text) - start
        row = {name: value[index // 6 : index // 6 + 1] for name, value in inputs.items()}
        total = log_probabilities(model, row, text[None, : start + length], length).sum()
        assert score.item() == pytest.approx(total.item() / length**length_penalty, abs=1e-4)
        lengths.add(length)
    assert len(lengths) > 1, "all of one length: the penalty had nothing to do"
    scores = found.sequences_scores.view(2, 6)
    assert (scores.diff(dim=1) <= 0).all()


@both
@torch.no_grad()
def test_wide_beams_find_the_best_text_of_all(family: str):
    """As many beams as there are words look at every text of two: the best one is known by trying them all."""
    model, inputs = writer(family), prompt_for(family, rows=1)
    found = model.generate(
        **inputs,
        max_new_tokens=2,
        num_beams=VOCAB,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    pairs = torch.tensor(list(itertools.product(range(VOCAB), repeat=2)))
    if family == "Seq2Seq":
        start = torch.full((len(pairs), 1), model.config.decoder_start_token_id)
    else:
        start = inputs["input_ids"].expand(len(pairs), -1)
    every = {name: value.expand(len(pairs), -1) for name, value in inputs.items()}
    totals = log_probabilities(model, every, torch.cat((start, pairs), dim=1), 2).sum(-1)
    assert found.sequences[0, -2:].tolist() == pairs[totals.argmax()].tolist()
    assert found.sequences_scores.item() == pytest.approx(totals.max().item() / 2, abs=1e-4)
    first_choice = greedy(model, inputs)[0, :2].tolist()
    assert totals.max() >= totals[pairs.tolist().index(first_choice)]


@both
@torch.no_grad()
def test_sampling_repeats_with_its_seed(family: str):
    model, inputs = writer(family), prompt_for(family)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(**inputs, max_new_tokens=NEW, do_sample=True, top_k=0))
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    one_choice = model.generate(**inputs, max_new_tokens=NEW, do_sample=True, top_k=1)
    assert torch.equal(one_choice[:, -NEW:], greedy(model, inputs))


@both
@torch.no_grad()
def test_an_assistant_changes_no_text(family: str):
    """A smaller model proposes, the larger one decides: the text is the larger one's alone."""
    model, inputs = writer(family), prompt_for(family, rows=1)
    expected = greedy(model, inputs)
    for assistant in (writer(family, num_hidden_layers=1), model):  # one that is mostly wrong, one always right
        assert torch.equal(greedy(model, inputs, assistant_model=assistant), expected)


@both
@torch.no_grad()
def test_a_text_goes_on_from_a_given_cache(family: str):
    """The past is not computed again: the first call sees the tokens that the cache lacks."""
    model, inputs = writer(family), prompt_for(family, length=6)
    if family == "Decoder":
        past = model(inputs["input_ids"][:, :4]).past_key_values
        assert isinstance(past, DynamicCache)
        expected, got = greedy(model, inputs), greedy(model, inputs, past_key_values=past)
    else:
        begun = torch.cat((torch.full((2, 1), START), random_ids(2, 3)), dim=1)
        inputs["decoder_attention_mask"] = torch.ones_like(begun)  # by its length `generate` knows what is new
        past = model(inputs["input_ids"], decoder_input_ids=begun[:, :3]).past_key_values
        expected = greedy(model, inputs, decoder_input_ids=begun)
        got = greedy(model, inputs, decoder_input_ids=begun, past_key_values=past)
    assert torch.equal(got, expected)
    assert past.get_seq_length() >= 4 + NEW - 1


@both
@torch.no_grad()
def test_the_encoder_reads_once_and_prefill_computes_one_row_of_logits(family: str):
    """What makes generation cheap: one pass over what is read, one token a step, one position of the vocabulary."""
    model, inputs = writer(family), prompt_for(family)
    seen = {"encoder": [], "decoder": [], "head": []}
    decoder = model.model.decoder if family == "Seq2Seq" else model.model
    decoder.norm.register_forward_hook(lambda _, args, __: seen["decoder"].append(args[0].shape[1]))
    model.lm_head.register_forward_hook(lambda _, args, __: seen["head"].append(args[0].shape[1]))
    if family == "Seq2Seq":
        model.model.encoder.norm.register_forward_hook(lambda _, args, __: seen["encoder"].append(args[0].shape[1]))
    greedy(model, inputs)
    assert seen["decoder"] == [1 if family == "Seq2Seq" else 5] + [1] * (NEW - 1)
    assert seen["head"] == [1] * NEW
    assert seen["encoder"] == ([5] if family == "Seq2Seq" else [])


@torch.no_grad()
def test_what_was_read_can_be_given():
    """The encoder's answer of an earlier call, as an output or a tuple, serves in place of the text."""
    model, inputs = writer("Seq2Seq"), prompt_for("Seq2Seq")
    assert model.get_encoder() is model.model.encoder and model.get_decoder() is model.model.decoder
    answer, written = model.get_encoder()(**inputs), random_ids(2, 4)
    expected = model(**inputs, decoder_input_ids=written).logits
    for given in (answer, answer.to_tuple()):
        assert_close(model(encoder_outputs=given, decoder_input_ids=written).logits, expected)
    assert torch.equal(greedy(model, {"encoder_outputs": answer}), greedy(model, inputs))


@torch.no_grad()
def test_a_static_cache_of_our_own_serves_a_decoder():
    """What a compiled loop would use: fixed memory, larger than the text."""
    model, ids = language_model("Decoder"), random_ids(2, 6)
    cache = StaticCache(config=model.config, max_cache_len=20)
    steps = [model(piece, past_key_values=cache).logits for piece in ids.split([4, 1, 1], dim=1)]
    assert_close(torch.cat(steps, dim=1), model(ids, use_cache=False).logits)


@both
@torch.no_grad()
def test_embeddings_may_be_the_prompt(family: str):
    model, inputs = writer(family), prompt_for(family)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    given = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
    assert torch.equal(greedy(model, given), greedy(model, inputs))


@both
@torch.no_grad()
def test_texts_end_at_the_end_token(family: str):
    """And are filled up with padding beside those that go on."""
    model, inputs = writer(family), prompt_for(family)
    plain = greedy(model, inputs)
    end = plain[0, 3].item()
    texts = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=0)
    texts = texts[:, 1 if family == "Seq2Seq" else inputs["input_ids"].shape[1] :]
    for text, reference in zip(texts, plain, strict=True):
        stop = reference.tolist().index(end) + 1 if end in reference else NEW
        assert text[:stop].tolist() == reference[:stop].tolist() and not text[stop:].any()
