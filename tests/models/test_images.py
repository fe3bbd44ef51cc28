"""Protects the Encoder on images: it computes what the text Encoder computes on patches, and its files open."""

import numpy as np
import pytest
import torch
from families import assert_close
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTImageProcessorPil,
    pipeline,
)

import hf_tiny_transformer as ours

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SEEN = {"image_size": 6, "patch_size": 2, "num_channels": 3}


def tiny(model_class=ours.TinyTransformerEncoderForImageClassification, **overrides):
    """Build a model with weights large enough for non-uniform attention."""
    settings = {**SHAPE, **SEEN, "num_labels": 4, "initializer_range": 0.2, **overrides}
    return model_class(ours.TinyTransformerEncoderImageConfig(**settings)).eval()


def processor_of_six() -> ViTImageProcessorPil:
    mean = [0.5] * 3
    return ViTImageProcessorPil(size={"height": 6, "width": 6}, image_mean=mean, image_std=mean, do_convert_rgb=True)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8))


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned", "none"])
def test_it_computes_the_text_encoder_on_patches(positions: str):
    """Patches that are cut and projected by hand, given as embeddings to an Encoder with the same weights."""
    seeing = tiny(ours.TinyTransformerEncoderImageModel, position_embedding_type=positions)
    shape = {**SHAPE, "position_embedding_type": positions, "max_position_embeddings": 9}
    reading = ours.TinyTransformerEncoderModel(ours.TinyTransformerEncoderConfig(**shape)).eval()
    weights = {name: w for name, w in seeing.state_dict().items() if not name.startswith("embed_tokens")}
    assert reading.load_state_dict(weights, strict=False).missing_keys == ["embed_tokens.weight"]

    images = torch.randn(2, 3, 6, 6)
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 12)  # row by row
    embedded = patches @ seeing.embed_tokens.projection.weight.flatten(1).T
    with torch.no_grad():
        assert_close(seeing(images).last_hidden_state, reading(inputs_embeds=embedded).last_hidden_state)


def test_every_parameter_is_used():
    """In particular there are no token embeddings."""
    model = tiny().train()
    model(torch.randn(2, 3, 6, 6), labels=torch.tensor([0, 3])).loss.backward()
    assert not any(8192 in parameter.shape for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_backends_agree():
    model, images = tiny(attn_implementation="eager"), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        expected = model(images).logits
        model.set_attn_implementation("sdpa")
        assert_close(model(images).logits, expected)


def test_attentions_and_hidden_states_come_out():
    outputs = tiny(attn_implementation="eager")(
        torch.randn(2, 3, 6, 6), output_attentions=True, output_hidden_states=True
    )
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, 9, 9)] * 2
    assert len(outputs.hidden_states) == 3
    assert isinstance(tiny()(torch.randn(1, 3, 6, 6), return_dict=False), tuple)


def test_auto_classes_and_the_pipeline_open_a_saved_model(tmp_path):
    model = tiny(id2label={i: name for i, name in enumerate("abcd")})
    model.save_pretrained(tmp_path)
    processor_of_six().save_pretrained(tmp_path)
    opened = AutoModelForImageClassification.from_pretrained(tmp_path)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(opened) is type(model) and type(trunk) is ours.TinyTransformerEncoderImageModel
    assert opened.config.max_position_embeddings == 9 and AutoConfig.from_pretrained(tmp_path) == opened.config
    stored = load_file(tmp_path / "model.safetensors")
    for name, weight in opened.state_dict().items():
        assert torch.equal(weight, stored[name])
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(picture(), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 6, 6) and pixels.min() >= -1 and pixels.max() <= 1
    with torch.no_grad():
        expected = model(pixels).logits.softmax(-1)[0]
        assert torch.equal(trunk(pixels).last_hidden_state, model.model(pixels).last_hidden_state)
    best = pipeline("image-classification", model=str(tmp_path))(picture())[0]
    assert best["label"] == "abcd"[expected.argmax()]
    assert best["score"] == pytest.approx(expected.max().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"image_size": 7}, "multiple of patch_size"),
        ({"max_position_embeddings": 8}, "9 patches"),
        ({"hidden_size": 33}, "multiple of"),
    ],
)
def test_inconsistent_configs_are_rejected(settings: dict, complaint: str):
    with pytest.raises(StrictDataclassError, match=complaint):
        ours.TinyTransformerEncoderImageConfig(**{**SHAPE, **SEEN, **settings})


def test_images_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match=r"expected images of shape \(3, 6, 6\), got \(1, 6, 6\)"):
        tiny()(torch.randn(2, 1, 6, 6))
