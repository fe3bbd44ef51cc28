"""Protects what both encoder families promise: files, tying, backends, masks, packing, losses, compilation."""

import warnings

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

import hf_tiny_transformer as ours
from hf_tiny_transformer import TinyTransformerBertConfig, TinyTransformerEncoderConfig

VOCAB, LENGTH = 53, 9
FAMILIES = {"Bert": TinyTransformerBertConfig, "Encoder": TinyTransformerEncoderConfig}
TASKS = {
    "Bert": ["Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction"],
    "Encoder": ["Model", "ForMaskedLM"],
}
SHARED_TASKS = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"]
CLASSES = [(family, task) for family in FAMILIES for task in TASKS[family] + SHARED_TASKS]
BACKENDS = ["eager", "sdpa", "flex_attention"]
POSITIONS = ["rotary", "sinusoidal", "learned", "none"]

WITH_MASKED_LM = [("Bert", "ForPreTraining"), ("Bert", "ForMaskedLM"), ("Encoder", "ForMaskedLM")]

both_families = pytest.mark.parametrize("family", list(FAMILIES))
every_class = pytest.mark.parametrize(("family", "task"), CLASSES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def _flex_uncompiled():
    """transformers compiles flex attention at the first call, half a minute a shape: here torch runs it as written."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def tiny_config(family: str, **overrides) -> TinyTransformerBertConfig | TinyTransformerEncoderConfig:
    """No dropout, and weights large enough that attention is far from uniform."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
    }
    if family == "Bert":
        shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return FAMILIES[family](**{**shape, **overrides})


def model_class(family: str, task: str) -> type[PreTrainedModel]:
    return getattr(ours, f"TinyTransformer{family}{task}")


def tiny_model(family: str, task: str = "Model", **overrides) -> PreTrainedModel:
    return model_class(family, task)(tiny_config(family, **overrides)).eval()


def batch(task: str = "Model", padded: bool = True) -> dict[str, torch.Tensor]:
    shape = (2, 3, LENGTH) if task == "ForMultipleChoice" else (2, LENGTH)
    attention_mask = torch.ones(shape, dtype=torch.long)
    if padded:
        attention_mask[1, ..., 6:] = 0
    return {"input_ids": torch.randint(1, VOCAB, shape), "attention_mask": attention_mask}


def masked_labels(ids: torch.Tensor) -> torch.Tensor:
    """Every third token is a target."""
    return torch.where(torch.arange(ids.numel()).view(ids.shape) % 3 == 0, ids, -100)


def gradients(model: PreTrainedModel, **inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(first, second) -> None:
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def settings(config) -> dict:
    """What a config says, without the path and the version stamp that transformers adds.

    `==` of two configs also compares how they came about (these two, "float32" against torch.float32, the backend
    chosen by building a model): a stock config is not equal to its reloaded self either.
    """
    stamps = ("_name_or_path", "transformers_version")
    return {key: value for key, value in config.to_dict().items() if key not in stamps}


# --- files -----------------------------------------------------------------------------------------------------------


@every_class
def test_a_saved_model_loads_as_it_was(family: str, task: str, tmp_path):
    """Weights, config, outputs, and the buffers that are not in the file: loading builds on the meta device."""
    model = tiny_model(family, task)
    model.save_pretrained(tmp_path)
    loaded, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert settings(loaded.config) == settings(model.config)
    tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    originals = dict(model.named_parameters()) | dict(model.named_buffers())
    assert tensors.keys() == originals.keys()
    for name, tensor in tensors.items():
        assert not tensor.is_meta and tensor.dtype == originals[name].dtype
        assert torch.equal(tensor, originals[name]), name
    inputs = batch(task)
    with torch.no_grad():
        for got, expected in zip(loaded(**inputs).to_tuple(), model(**inputs).to_tuple(), strict=True):
            assert_close(got, expected)  # weights lie elsewhere in memory, and sums may run in another order


@both_families
def test_a_config_survives_json(family: str, tmp_path):
    config = tiny_config(family, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    once = FAMILIES[family].from_pretrained(tmp_path)
    assert settings(once) == settings(config)
    assert once.id2label == {0: "a", 1: "b", 2: "c"}
    once.save_pretrained(tmp_path)
    assert FAMILIES[family].from_pretrained(tmp_path) == once  # read and written again, nothing is left to differ


def test_rope_scaling_survives_a_load(tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
    model = tiny_model("Encoder", rope_parameters=rope)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    plain = tiny_model("Encoder", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert torch.equal(loaded.rotary_emb.inv_freq, model.rotary_emb.inv_freq)
    assert not torch.equal(loaded.rotary_emb.inv_freq, plain.rotary_emb.inv_freq)


@every_class
def test_bf16_load_keeps_the_rotary_frequencies_exact(family: str, task: str, tmp_path):
    model = tiny_model(family, task)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for name, buffer in half.named_buffers():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, model.get_buffer(name))
    inputs = batch(task)
    with torch.no_grad():
        got, expected = half(**inputs)[0], model(**inputs)[0]
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.02


@pytest.mark.parametrize(("family", "task"), WITH_MASKED_LM)
def test_output_matrix_stays_tied(family: str, task: str, tmp_path):
    """One storage: when built, after a load, after a resize, and after a load of the resized."""
    model = tiny_model(family, task)
    model.save_pretrained(tmp_path / "first")
    resized = type(model).from_pretrained(tmp_path / "first")
    resized.resize_token_embeddings(VOCAB + 7)
    resized.save_pretrained(tmp_path / "second")
    reloaded = type(model).from_pretrained(tmp_path / "second")
    for tied in (model, type(model).from_pretrained(tmp_path / "first"), resized, reloaded):
        assert tied.lm_head.weight.data_ptr() == tied.model.embed_tokens.weight.data_ptr()
    assert reloaded.config.vocab_size == VOCAB + 7
    inputs = batch()
    logits = reloaded(**inputs)[0]
    assert logits.shape[-1] == VOCAB + 7 == reloaded.lm_head.bias.shape[0]
    assert_close(logits[..., :VOCAB], model(**inputs)[0])

    untied = tiny_model(family, task, tie_word_embeddings=False)
    assert untied.lm_head.weight.data_ptr() != untied.model.embed_tokens.weight.data_ptr()


@both_families
def test_trunk_opens_as_a_task_model_and_back(family: str, tmp_path):
    """`num_labels` rebuilds the label names; the head alone is new; the trunk's bytes come from the file."""
    trunk = tiny_model(family)
    trunk.save_pretrained(tmp_path / "trunk")
    classifier, loading = model_class(family, "ForSequenceClassification").from_pretrained(
        tmp_path / "trunk", num_labels=3, output_loading_info=True
    )
    assert classifier.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert classifier.classifier.out_features == 3
    assert loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(name.startswith(("classifier.", "head.")) for name in loading["missing_keys"])
    classifier.save_pretrained(tmp_path / "classifier")
    again = type(trunk).from_pretrained(tmp_path / "classifier")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trunk.state_dict().items())


@every_class
def test_auto_classes_open_the_family(family: str, task: str, tmp_path):
    model = tiny_model(family, task)
    model.save_pretrained(tmp_path)
    auto_class = getattr(transformers, f"AutoModel{task.removeprefix('Model')}")
    assert type(auto_class.from_pretrained(tmp_path)) is type(model)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is FAMILIES[family]


# --- attention and masks ---------------------------------------------------------------------------------------------


@both_families
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.usefixtures("_flex_uncompiled")
@pytest.mark.parametrize("padded", [False, True])
def test_backends_agree(family: str, backend: str, padded: bool):
    model, inputs = tiny_model(family), batch(padded=padded)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(**inputs).last_hidden_state
        model.set_attn_implementation(backend)
        assert model.config._attn_implementation == backend
        assert_close(model(**inputs).last_hidden_state[real], expected[real])


@both_families
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_encoders_look_both_ways(family: str, backend: str):
    """Without a mask sdpa would be causal if the blocks did not say otherwise."""
    model, ids = tiny_model(family, attn_implementation=backend), batch()["input_ids"]
    changed = ids.clone()
    changed[:, -1] = ids[:, -1] % (VOCAB - 1) + 1
    with torch.no_grad():
        difference = model(changed).last_hidden_state[:, 0] - model(ids).last_hidden_state[:, 0]
    assert difference.abs().max() > 1e-4


@both_families
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_padding_is_not_seen(family: str, backend: str):
    model, inputs = tiny_model(family, attn_implementation=backend), batch()
    changed = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 7)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        before = model(**inputs).last_hidden_state[real]
        after = model(changed, attention_mask=inputs["attention_mask"]).last_hidden_state[real]
    assert torch.equal(before, after)


@both_families
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_flex_uncompiled")
def test_packed_documents_are_alone_in_their_row(family: str, backend: str):
    """Packed = padded = alone, and a neighbour's words change nothing, not even in the last bit."""
    model = tiny_model(family, attn_implementation=backend)
    first, second = torch.randint(1, VOCAB, (5,)), torch.randint(1, VOCAB, (4,))
    row = torch.cat((first, second))[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    padded = nn.utils.rnn.pad_sequence([first, second], batch_first=True)
    with torch.no_grad():
        packed = model(row, position_ids=positions).last_hidden_state[0]
        apart = model(padded, attention_mask=(padded > 0).long()).last_hidden_state
        for document, states in ((first, packed[:5]), (second, packed[5:])):
            assert_close(states, model(document[None]).last_hidden_state[0])
        assert_close(packed, torch.cat((apart[0], apart[1, :4])))

        perturbed = row.clone()
        perturbed[0, :5] = row[0, :5] % (VOCAB - 1) + 1
        changed = model(perturbed, position_ids=positions).last_hidden_state[0]
    assert torch.equal(changed[5:], packed[5:])
    assert not torch.allclose(changed[:5], packed[:5], atol=1e-3)


@both_families
def test_attentions_and_hidden_states_come_out(family: str):
    model, inputs = tiny_model(family, attn_implementation="eager"), batch()
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, LENGTH, LENGTH)] * 2
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, LENGTH, 32)] * 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    for weights in outputs.attentions:
        assert_close(weights.sum(-1), torch.ones(2, 2, LENGTH))
        assert weights[1, :, :, 6:].max() == 0  # padding
    task_outputs = tiny_model(family, "ForMaskedLM", attn_implementation="eager")(**inputs, output_attentions=True)
    assert len(task_outputs.attentions) == 2 and task_outputs.hidden_states is None


@pytest.mark.parametrize("positions", POSITIONS)
def test_permutation_shows_which_positions_are_known(positions: str):
    """Without positions the encoder maps a shuffled text to the shuffled states; with any kind it does not."""
    model = tiny_model("Encoder", position_embedding_type=positions).double()
    ids, order = batch(padded=False)["input_ids"], torch.randperm(LENGTH)
    with torch.no_grad():
        expected, got = model(ids).last_hidden_state[:, order], model(ids[:, order]).last_hidden_state
    blind = torch.allclose(got, expected, atol=1e-10)  # not bit for bit: sums run in another order
    assert blind == (positions == "none")


@both_families
def test_embeddings_can_be_given(family: str):
    model, inputs = tiny_model(family), batch()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    given = model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
    assert torch.equal(given.last_hidden_state, model(**inputs).last_hidden_state)
    for wrong in ({}, {"input_ids": inputs["input_ids"], "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of"):
            model(**wrong)


# --- losses and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "task"), WITH_MASKED_LM)
def test_target_positions_give_the_dense_loss(family: str, task: str):
    model, inputs = tiny_model(family, task), batch()
    labels = masked_labels(inputs["input_ids"])
    targets = (labels.flatten() != -100).nonzero().flatten()
    extra = {"next_sentence_label": torch.tensor([0, 1])} if task == "ForPreTraining" else {}
    dense = model(**inputs, labels=labels, **extra)
    sparse = {**inputs, "labels": labels.flatten()[targets], "target_positions": targets, **extra}
    assert_close(model(**sparse)[1], dense[1].flatten(0, 1)[targets])
    assert_close(model(**sparse).loss, dense.loss)
    assert_close(gradients(model, **sparse), gradients(model, **inputs, labels=labels, **extra))


@pytest.mark.parametrize(("family", "task"), WITH_MASKED_LM)
def test_parts_of_a_batch_add_up_to_the_whole(family: str, task: str):
    """With the whole's count of targets, the gradients of two micro-batches sum to those of the batch."""
    model, inputs = tiny_model(family, task), batch()
    inputs["labels"] = masked_labels(inputs["input_ids"])
    if task == "ForPreTraining":
        inputs["next_sentence_label"] = torch.tensor([0, 1])
    whole = gradients(model, **inputs)
    count = (inputs["labels"] != -100).sum()
    parts = [
        gradients(model, **{name: tensor[row : row + 1] for name, tensor in inputs.items()}, num_items_in_batch=count)
        for row in range(2)
    ]
    for name, gradient in whole.items():
        assert_close(parts[0][name] + parts[1][name], gradient)


@both_families
def test_gradient_checkpointing_gives_the_same_gradients(family: str):
    model, inputs = tiny_model(family, "ForMaskedLM").train(), batch()
    inputs["labels"] = masked_labels(inputs["input_ids"])
    calls = []
    model.model.layers[0].attention.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients(model, **inputs)
    model.activation_checkpointing_enable()
    assert_close(gradients(model, **inputs), expected)
    assert len(calls) == 3  # once without, and with it once more in the backward pass


@both_families
def test_classifier_losses(family: str):
    """One label, several labels, one number; the kind is taken from the config or from the labels."""
    inputs = batch()
    cases = [
        (3, None, torch.tensor([2, 0]), nn.functional.cross_entropy),
        (3, "multi_label_classification", torch.rand(2, 3), nn.functional.binary_cross_entropy_with_logits),
        (1, None, torch.tensor([0.3, -2.0]), lambda logits, labels: nn.functional.mse_loss(logits[:, 0], labels)),
    ]
    for num_labels, problem_type, labels, expected in cases:
        model = tiny_model(family, "ForSequenceClassification", num_labels=num_labels, problem_type=problem_type)
        outputs = model(**inputs, labels=labels)
        assert outputs.logits.shape == (2, num_labels)
        assert_close(outputs.loss, expected(outputs.logits, labels))


@both_families
def test_token_question_and_choice_losses(family: str):
    inputs, cross_entropy = batch(), nn.functional.cross_entropy
    tags = torch.randint(0, 2, (2, LENGTH)).masked_fill(inputs["attention_mask"] == 0, -100)
    outputs = tiny_model(family, "ForTokenClassification")(**inputs, labels=tags)
    assert_close(outputs.loss, cross_entropy(outputs.logits.flatten(0, 1), tags.flatten()))

    starts, ends = torch.tensor([1, LENGTH + 3]), torch.tensor([4, 2])  # the second start lies outside: ignored
    model = tiny_model(family, "ForQuestionAnswering")
    outputs = model(**inputs, start_positions=starts, end_positions=ends)
    expected = cross_entropy(outputs.start_logits[:1], starts[:1]) + cross_entropy(outputs.end_logits, ends)
    assert_close(outputs.loss, expected / 2)

    choices = batch("ForMultipleChoice")
    outputs = tiny_model(family, "ForMultipleChoice")(**choices, labels=torch.tensor([2, 0]))
    assert outputs.logits.shape == (2, 3)
    assert_close(outputs.loss, cross_entropy(outputs.logits, torch.tensor([2, 0])))


@both_families
def test_masked_lm_learns_one_batch_by_heart(family: str):
    model = tiny_model(family, "ForMaskedLM", initializer_range=0.02).train()
    inputs = batch()
    inputs["labels"] = masked_labels(inputs["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert abs(losses[0] - torch.tensor(float(VOCAB)).log().item()) < 0.5  # a fresh model knows nothing
    assert losses[-1] < 0.1


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "wrong", "message"),
    [
        *((family, {"hidden_size": 33}, "multiple of") for family in FAMILIES),
        *((family, {field: value}, field) for family in FAMILIES for field in ("vocab_size", "hidden_size")
          for value in (0, -4, "32", 3.5)),
        *((family, {field: 0}, field) for family in FAMILIES
          for field in ("num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")),
        *((family, {"hidden_act": "no_such_activation"}, "hidden_act") for family in FAMILIES),
        *((family, {"initializer_range": -0.1}, "initializer_range") for family in FAMILIES),
        *((family, {"classifier_dropout": 1.5}, "classifier_dropout") for family in FAMILIES),
        ("Bert", {"hidden_dropout_prob": -0.1}, "hidden_dropout_prob"),
        ("Bert", {"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ("Bert", {"type_vocab_size": 0}, "type_vocab_size"),
        ("Encoder", {"norm_eps": -1e-5}, "norm_eps"),
        ("Encoder", {"attention_dropout": 2}, "attention_dropout"),
        ("Encoder", {"position_embedding_type": "absolute"}, "position_embedding_type"),
        ("Encoder", {"classifier_pooling": "max"}, "classifier_pooling"),
        ("Encoder", {"hidden_size": 30, "num_attention_heads": 2}, "must be even"),
        ("Encoder", {"hidden_size": 33, "num_attention_heads": 3, "position_embedding_type": "sinusoidal"}, "even"),
        ("Encoder", {"rope_parameters": {"rope_type": "no_such", "rope_theta": 1.0}}, "rope_type 'no_such'"),
    ],
)  # fmt: skip
def test_wrong_configs_are_refused(family: str, wrong: dict, message: str):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(family, **wrong)


# --- compilation and export ------------------------------------------------------------------------------------------


def graph_inputs(kind: str) -> dict[str, torch.Tensor]:
    inputs = batch()
    if kind == "packed":
        inputs = {"input_ids": inputs["input_ids"], "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)}
    return inputs | {"labels": masked_labels(inputs["input_ids"])}


@both_families
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_forward_and_loss_are_one_graph(family: str, kind: str):
    """fullgraph=True: nothing makes the compiler stop. The aot_eager backend traces, and needs no C++ compiler."""
    model, inputs = tiny_model(family, "ForMaskedLM"), graph_inputs(kind)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**inputs).logits, model(**inputs).logits)
    expected = gradients(model, **inputs)
    model.zero_grad()
    compiled(**inputs).loss.backward()
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient)


@both_families
def test_exported_graph_serves_other_sizes(family: str):
    """torch.export with dynamic batch and length; the graph then runs on shapes it was not traced with."""
    model = tiny_model(family, "ForSequenceClassification")
    sizes = {0: torch.export.Dim("rows", min=2, max=64), 1: torch.export.Dim("tokens", min=2, max=32)}
    shapes = {"input_ids": sizes, "attention_mask": sizes}
    program = torch.export.export(model, (), batch(), dynamic_shapes=shapes)
    inputs = {"input_ids": torch.randint(1, VOCAB, (5, 17)), "attention_mask": torch.ones(5, 17, dtype=torch.long)}
    inputs["attention_mask"][2, 4:] = 0
    assert_close(program.module()(**inputs).logits, model(**inputs).logits)
