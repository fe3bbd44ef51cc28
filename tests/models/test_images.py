"""Protects the Encoder that reads images: patches for words, all else the same; files, Trainer, digits, attention."""

import json

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
from benchmarks import digits
from hf_tiny_transformer.attend.figure import draw_over_image
from hf_tiny_transformer.attend.read import load, read_image_attention
from hf_tiny_transformer.cli import main
from hf_tiny_transformer.common.errors import UserError, run_command

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SEEN = {"image_size": 6, "patch_size": 2, "num_channels": 3}


def tiny(model_class=ours.TinyTransformerEncoderForImageClassification, **overrides):
    """Weights large enough that attention is far from uniform."""
    settings = {**SHAPE, **SEEN, "num_labels": 4, "initializer_range": 0.2, **overrides}
    return model_class(ours.TinyTransformerEncoderImageConfig(**settings)).eval()


def processor_of_six() -> ViTImageProcessorPil:
    mean = [0.5] * 3
    return ViTImageProcessorPil(size={"height": 6, "width": 6}, image_mean=mean, image_std=mean, do_convert_rgb=True)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8))


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned", "none"])
def test_it_is_the_text_encoder_on_patches(positions: str):
    """Patches cut and mapped by hand, given as embeddings to an Encoder with the same weights: the same states."""
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


def test_no_word_embeddings_are_carried_along():
    """Nor any other parameter that no image reaches: each has a gradient."""
    model = tiny().train()
    model(torch.randn(2, 3, 6, 6), labels=torch.tensor([0, 3])).loss.backward()
    assert not any(8192 in parameter.shape for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("backend", ["sdpa"])
def test_backends_agree(backend: str):
    model, images = tiny(attn_implementation="eager"), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        expected = model(images).logits
        model.set_attn_implementation(backend)
        assert_close(model(images).logits, expected)


def test_attentions_and_hidden_states_come_out():
    outputs = tiny(attn_implementation="eager")(
        torch.randn(2, 3, 6, 6), output_attentions=True, output_hidden_states=True
    )
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, 9, 9)] * 2
    assert len(outputs.hidden_states) == 3
    assert isinstance(tiny()(torch.randn(1, 3, 6, 6), return_dict=False), tuple)


def test_the_auto_classes_and_the_pipeline_open_what_was_saved(tmp_path):
    """Bit for bit; the trunk alone too; and a directory without a processor's own file still names a class."""
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

    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings.pop("image_processor_type")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), ViTImageProcessorPil)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"image_size": 7}, "multiple of patch_size"),
        ({"max_position_embeddings": 8}, "9 patches"),
        ({"hidden_size": 33}, "multiple of"),
    ],
)
def test_configs_that_contradict_themselves(settings: dict, complaint: str):
    with pytest.raises(StrictDataclassError, match=complaint):
        ours.TinyTransformerEncoderImageConfig(**{**SHAPE, **SEEN, **settings})


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected images of shape \(3, 6, 6\), got \(1, 6, 6\)"):
        tiny()(torch.randn(2, 1, 6, 6))


def test_digits_are_learned_on_trainer_and_the_attention_lies_over_the_picture(tmp_path, capsys):
    """A sixth of the epochs; what the whole run reaches is in benchmarks/LOG.md."""
    output = tmp_path / "digits"
    results = digits.train(output, epochs=10)
    assert results["validation accuracy"] > 0.8
    assert json.loads((output / "results.json").read_text()) == results
    model, processor = load(output, image=True)
    image = Image.open(output / "example.png")
    one = read_image_attention(model, processor, image)
    assert one.grid == (4, 4) and one.weights.shape == (3, 4, 16, 16)
    drawn = draw_over_image(one, image).axes[1].images[1].get_array()
    np.testing.assert_allclose(drawn, one.weights[-1].mean(0).mean(0).reshape(4, 4), atol=1e-6)
    drawn = draw_over_image(one, image, layer=0, head=1, patch=5).axes[1].images[1].get_array()
    np.testing.assert_array_equal(drawn, one.weights[0, 1, 5].reshape(4, 4))

    page, png = tmp_path / "page.html", tmp_path / "over.png"
    flags = ["--image", str(output / "example.png"), "--output", str(page), "--png", str(png), "--word", "1,2"]
    main(["attend", "--model", str(output), *flags])
    assert "data:image/png;base64," in page.read_text() and png.stat().st_size > 1000
    assert run_command(lambda: main(["attend", "--model", str(output), "--text", "seven", "--png", str(png)])) == 2
    assert "reads images" in capsys.readouterr().err
    with pytest.raises(UserError, match="already holds"):
        digits.train(output)


def test_the_split_is_fixed_and_disjoint():
    first, second = digits.splits(), digits.splits()
    assert [len(first[name][1]) for name in ("train", "validation", "held out")] == [1077, 360, 360]
    for name, (pictures, _) in first.items():
        assert np.array_equal(pictures, second[name][0])
        assert len(set(second[name][1])) == 10
