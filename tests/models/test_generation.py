"""Protects generation: caches, padding, beams and assistants change the cost, never the text."""

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
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

NEW, START = 8, 3
both = pytest.mark.parametrize("family", GENERATORS)


def writer(family: str, **overrides) -> PreTrainedModel:
    """Build an untied model with large weights: any other random model repeats one token, which hides errors."""
    if family == "Seq2Seq":
        overrides = {"decoder_start_token_id": START} | overrides
    return language_model(family, **{"tie_word_embeddings": False, "initializer_range": 0.4} | overrides)


def prompt_for(family: str, rows: int = 2, length: int = 5) -> dict[str, torch.Tensor]:
    ids = random_ids(rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def greedy(model: PreTrainedModel, inputs: dict, **settings) -> torch.Tensor:
    """Generate, and return the new tokens."""
    texts = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings)
    return texts[:, -NEW:]


def argmax_loop(model: PreTrainedModel, inputs: dict[str, torch.Tensor], steps: int = NEW) -> torch.Tensor:
    """Search greedily without a cache."""
    if model.config.is_encoder_decoder:
        tokens = torch.full((len(inputs["input_ids"]), 1), model.config.decoder_start_token_id)
    else:
        tokens = inputs["input_ids"]
    for _ in range(steps):
        if model.config.is_encoder_decoder:
            logits = model(**inputs, decoder_input_ids=tokens, use_cache=False).logits
        else:
            logits = model(input_ids=tokens, use_cache=False).logits
        tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), dim=1)
    return tokens[:, -steps:]


def log_probabilities(model: PreTrainedModel, inputs: dict, texts: torch.Tensor, new: int) -> torch.Tensor:
    """Compute (B, new) of the last `new` tokens of each text, in one pass without a cache."""
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    given = {**inputs, name: texts} if model.config.is_encoder_decoder else {name: texts}
    logits = model(**given, use_cache=False).logits[:, -new - 1 : -1]
    return logits.log_softmax(-1).gather(-1, texts[:, -new:, None])[..., 0]


@both
@torch.no_grad()
def test_greedy_search_is_the_argmax_loop(family: str):
    model, inputs = writer(family), prompt_for(family, rows=4)
    expected = argmax_loop(model, inputs)
    assert len(set(expected.flatten().tolist())) > 4  # not a repetition of one token
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 1}):
        assert torch.equal(greedy(model, inputs, **settings), expected), settings


@torch.no_grad()
def test_a_seq2seq_decoder_of_another_depth():
    """The caches have as many layers as the decoder."""
    for depths in (
        {"num_hidden_layers": 1, "num_decoder_layers": 3},
        {"num_hidden_layers": 3, "num_decoder_layers": 1},
    ):
        model, inputs = writer("Seq2Seq", **depths), prompt_for("Seq2Seq")
        expected = argmax_loop(model, inputs)
        for settings in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
            assert torch.equal(greedy(model, inputs, **settings), expected)
        cache = model(**inputs, decoder_input_ids=random_ids(2, 1)).past_key_values
        assert isinstance(cache, EncoderDecoderCache)
        assert len(cache.self_attention_cache.layers) == depths["num_decoder_layers"]
        beams = model.generate(**inputs, max_new_tokens=NEW, num_beams=3, do_sample=False)
        uncached = model.generate(**inputs, max_new_tokens=NEW, num_beams=3, do_sample=False, use_cache=False)
        assert torch.equal(beams, uncached)


@both
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 1, 3], [8, 1]])
@torch.no_grad()
def test_cached_logits_are_the_uncached_ones(family: str, chunks: list[int]):
    """Token by token or several at once."""
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
def test_padding_in_the_cache_has_no_effect():
    """The mask covers the past: other tokens in its padding give bit-identical logits."""
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
    """A short prompt is continued in a batch with a longer one as it is alone."""
    model, documents = writer("Decoder", position_embedding_type=positions), two_documents("Decoder")
    together = greedy(model, pad(documents, "left"))
    for row, document in zip(together, documents, strict=True):
        alone = document | {"attention_mask": torch.ones_like(document["input_ids"])}
        assert torch.equal(row[None], greedy(model, alone))


@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_of_the_source_changes_no_text(positions: str, side: str):
    """On either side, with positions that are distances; added positions count padding on the left."""
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
    """Of texts of different lengths: the sum of log probabilities over length ** penalty, in descending order."""
    model, inputs = writer(family), prompt_for(family)
    ends = list(range(1, VOCAB, 5))  # many end tokens, so that texts of several lengths compete
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
    assert len(lengths) > 1, "all of one length: the penalty was not tested"
    scores = found.sequences_scores.view(2, 6)
    assert (scores.diff(dim=1) <= 0).all()


@both
@torch.no_grad()
def test_an_assistant_changes_no_text(family: str):
    """Assisted generation gives the text of the larger model alone."""
    model, inputs = writer(family), prompt_for(family, rows=1)
    expected = greedy(model, inputs)
    for assistant in (writer(family, num_hidden_layers=1), model):  # one mostly wrong, one always right
        assert torch.equal(greedy(model, inputs, assistant_model=assistant), expected)


@both
@torch.no_grad()
def test_generation_continues_from_a_cache(family: str):
    model, inputs = writer(family), prompt_for(family, length=6)
    if family == "Decoder":
        past = model(inputs["input_ids"][:, :4]).past_key_values
        assert isinstance(past, DynamicCache)
        expected, got = greedy(model, inputs), greedy(model, inputs, past_key_values=past)
    else:
        prefix = torch.cat((torch.full((2, 1), START), random_ids(2, 3)), dim=1)
        inputs["decoder_attention_mask"] = torch.ones_like(prefix)  # `generate` finds the new tokens by its length
        past = model(inputs["input_ids"], decoder_input_ids=prefix[:, :3]).past_key_values
        expected = greedy(model, inputs, decoder_input_ids=prefix)
        got = greedy(model, inputs, decoder_input_ids=prefix, past_key_values=past)
    assert torch.equal(got, expected)
    assert past.get_seq_length() >= 4 + NEW - 1


@both
@torch.no_grad()
def test_generation_computes_no_more_than_needed(family: str):
    """The encoder runs once, the decoder on one token per step, the head on one position."""
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
def test_encoder_outputs():
    """Of an earlier call, as an output or a tuple, instead of the text."""
    model, inputs = writer("Seq2Seq"), prompt_for("Seq2Seq")
    assert model.get_encoder() is model.model.encoder and model.get_decoder() is model.model.decoder
    encoded, tokens = model.get_encoder()(**inputs), random_ids(2, 4)
    expected = model(**inputs, decoder_input_ids=tokens).logits
    for given in (encoded, encoded.to_tuple()):
        assert_close(model(encoder_outputs=given, decoder_input_ids=tokens).logits, expected)
    assert torch.equal(greedy(model, {"encoder_outputs": encoded}), greedy(model, inputs))


@both
@torch.no_grad()
def test_inputs_embeds_as_the_prompt(family: str):
    model, inputs = writer(family), prompt_for(family)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    given = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
    assert torch.equal(greedy(model, given), greedy(model, inputs))
