"""Protects saving and loading: every class is restored exactly, in any precision, by every route."""

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from families import (
    BACKENDS,
    CLASSIFIERS,
    FAMILIES,
    assert_close,
    batch,
    every_class,
    every_family,
    language_model,
    model_class,
    tiny_config,
    tiny_model,
    training_batch,
    without_cache,
)
from transformers import PreTrainedModel


def settings(config) -> dict:
    """Return the fields of a config without the path and the version that transformers adds.

    `==` also compares these, and the backend that a model has chosen; a stock config is not equal to itself reloaded.
    """
    stamps = ("_name_or_path", "transformers_version")
    return {key: value for key, value in config.to_dict().items() if key not in stamps}


def assert_same_tensors(model: PreTrainedModel, original: PreTrainedModel) -> None:
    """Compare parameters and all buffers, in value and dtype."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    originals = dict(original.named_parameters()) | dict(original.named_buffers())
    assert tensors.keys() == originals.keys()
    for name, tensor in tensors.items():
        assert not tensor.is_meta and tensor.dtype == originals[name].dtype
        assert torch.equal(tensor, originals[name]), name


def assert_same_outputs(model: PreTrainedModel, original: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Compare outputs closely: another memory layout can change the order of sums."""
    with torch.no_grad():
        outputs, originals = model(**inputs), original(**inputs)
    assert outputs.keys() == originals.keys()
    for key in outputs.keys() - {"past_key_values"}:
        assert_close(outputs[key], originals[key])


@every_class
def test_a_saved_model_is_restored(family: str, task: str, tmp_path):
    """Weights, config, outputs, and buffers that are not in the file: loading starts on the meta device."""
    model = tiny_model(family, task)
    model.save_pretrained(tmp_path)
    loaded, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert settings(loaded.config) == settings(model.config)
    assert_same_tensors(loaded, model)
    assert_same_outputs(loaded, model, training_batch(family, task))


@every_family
def test_a_config_survives_json(family: str, tmp_path):
    config = tiny_config(family, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    once = FAMILIES[family].from_pretrained(tmp_path)
    assert settings(once) == settings(config)
    assert once.id2label == {0: "a", 1: "b", 2: "c"}
    once.save_pretrained(tmp_path)
    assert FAMILIES[family].from_pretrained(tmp_path) == once


@pytest.mark.parametrize("family", ["Encoder", "Decoder", "Seq2Seq"])
def test_rope_scaling_survives_a_load(family: str, tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
    model = tiny_model(family, rope_parameters=rope)
    model.save_pretrained(tmp_path)
    assert_same_tensors(type(model).from_pretrained(tmp_path), model)
    plain = tiny_model(family, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    frequencies = [name for name, _ in model.named_buffers() if name.endswith(".inv_freq")]
    assert len(frequencies) == (2 if family == "Seq2Seq" else 1)
    assert not any(torch.equal(model.get_buffer(name), plain.get_buffer(name)) for name in frequencies)


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_rotary_frequencies_in_fp32(family: str, dtype: torch.dtype, tmp_path):
    model = language_model(family)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    for name, buffer in half.named_buffers():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, model.get_buffer(name))
    inputs = batch(family)
    with torch.no_grad():
        got, expected = half(**inputs)[0], model(**inputs)[0]
    assert got.dtype == dtype
    assert (got.float() - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.02


@every_family
def test_a_load_keeps_the_precision_of_the_file_unless_told_otherwise(family: str, tmp_path):
    half = language_model(family).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    assert type(half).from_pretrained(tmp_path).dtype == torch.bfloat16
    full = type(half).from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter, half.get_parameter(name).float()), name


@every_family
def test_a_model_on_the_meta_device_is_filled_completely(family: str):
    """`to_empty` leaves arbitrary memory, here NaN, which initialising and loading must overwrite."""
    original = language_model(family)
    with torch.device("meta"):
        model = language_model(family)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(torch.nan)
    model.init_weights()
    assert not any(tensor.isnan().any() for tensor in [*model.parameters(), *model.buffers()])
    model.load_state_dict(original.state_dict())
    model.tie_weights()  # `to_empty` separates tied weights
    assert_same_tensors(model, original)
    assert_same_outputs(model, original, training_batch(family))


@every_family
def test_accelerate_fills_an_empty_model_from_a_file(family: str, tmp_path):
    original = language_model(family)
    original.save_pretrained(tmp_path)
    with init_empty_weights():
        model = language_model(family)
    model.tie_weights()
    model = load_checkpoint_and_dispatch(model, str(tmp_path), device_map={"": "cpu"}).eval()
    assert_same_tensors(model, original)
    assert_same_outputs(model, original, training_batch(family))


@every_family
def test_device_map_auto(family: str, tmp_path):
    model = language_model(family)
    model.save_pretrained(tmp_path)
    mapped = type(model).from_pretrained(tmp_path, device_map="auto")
    inputs = batch(family)
    with torch.no_grad():
        assert_close(mapped(**inputs)[0].cpu(), model(**inputs)[0])


@every_family
def test_layers_can_be_offloaded_to_disk(family: str, tmp_path):
    """`_no_split_modules` keeps a layer whole."""
    model = language_model(family)
    model.save_pretrained(tmp_path / "model")
    half = "model.decoder" if family == "Seq2Seq" else "model"
    offloaded = f"{half}.layers.1"
    names = [name for name, module in model.named_modules() if name and not any(module.children())]
    devices = {name: "cpu" for name in names if not name.startswith(f"{offloaded}.")} | {offloaded: "disk"}
    mapped = type(model).from_pretrained(
        tmp_path / "model", device_map=devices, offload_folder=str(tmp_path / "offload")
    )
    assert mapped.get_parameter(f"{offloaded}.attention.q_proj.weight").is_meta
    inputs = batch(family) | without_cache(family)
    with torch.no_grad():
        assert_close(mapped(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_trunk_opens_as_a_task_model_and_back(family: str, tmp_path):
    """`num_labels` renames the labels; only the head is new; the trunk's weights come from the file."""
    trunk = tiny_model(family)
    trunk.save_pretrained(tmp_path / "trunk")
    classifier, loading = model_class(family, "ForSequenceClassification").from_pretrained(
        tmp_path / "trunk", num_labels=3, output_loading_info=True
    )
    assert classifier.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert classifier.classifier.out_features == 3
    assert loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(name.startswith(("classifier.", "transform.")) for name in loading["missing_keys"])
    classifier.save_pretrained(tmp_path / "classifier")
    again = type(trunk).from_pretrained(tmp_path / "classifier")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trunk.state_dict().items())


@every_family
def test_trunk_opens_as_a_language_model_and_back(family: str, tmp_path):
    """The head is new, except for its output matrix, which is tied to the embeddings."""
    trunk = tiny_model(family)
    trunk.save_pretrained(tmp_path / "trunk")
    full, loading = type(language_model(family)).from_pretrained(tmp_path / "trunk", output_loading_info=True)
    assert loading["missing_keys"] and all(
        name.startswith(("transform.", "lm_head.")) for name in loading["missing_keys"]
    )
    assert torch.equal(full.lm_head.weight, trunk.get_input_embeddings().weight)
    full.save_pretrained(tmp_path / "full")
    again = type(trunk).from_pretrained(tmp_path / "full")
    kept = {name: tensor for name, tensor in trunk.state_dict().items() if not name.startswith("pooler.")}
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in kept.items())


@every_family
def test_the_attention_backend_is_not_saved(family: str, tmp_path):
    model = language_model(family, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    assert "eager" not in (tmp_path / "config.json").read_text()
    for backend in BACKENDS:
        opened = type(model).from_pretrained(tmp_path, attn_implementation=backend)
        assert opened.config._attn_implementation == backend
    assert type(model).from_pretrained(tmp_path).config._attn_implementation == "sdpa"
