"""Protects against configurations that cannot work: invalid values are rejected, and the message names the field."""

import pytest
from families import FAMILIES, every_family, language_model, tiny_config, tiny_model
from huggingface_hub.errors import StrictDataclassError

TRUNK_FAMILIES = ["Encoder", "Decoder", "Seq2Seq"]


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
        *((family, {"classifier_dropout": 1.5}, "classifier_dropout") for family in ("Bert", "Encoder", "Decoder")),
        ("Bert", {"hidden_dropout_prob": -0.1}, "hidden_dropout_prob"),
        ("Bert", {"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ("Bert", {"type_vocab_size": 0}, "type_vocab_size"),
        *((family, wrong, message) for family in TRUNK_FAMILIES for wrong, message in (
            ({"norm_eps": -1e-5}, "norm_eps"),
            ({"embedding_dropout": -1}, "embedding_dropout"),
            ({"attention_dropout": 2}, "attention_dropout"),
            ({"mlp_dropout": 1.1}, "mlp_dropout"),
            ({"position_embedding_type": "absolute"}, "position_embedding_type"),
            ({"hidden_size": 30, "num_attention_heads": 2}, "must be even"),
            ({"hidden_size": 33, "num_attention_heads": 3, "position_embedding_type": "sinusoidal"}, "even"),
            ({"rope_parameters": {"rope_type": "no_such", "rope_theta": 1.0}}, "rope_type 'no_such'"),
        )),
        ("Encoder", {"classifier_pooling": "max"}, "classifier_pooling"),
        ("Decoder", {"use_cache": "yes"}, "use_cache"),
        ("Seq2Seq", {"num_decoder_layers": 0}, "num_decoder_layers"),
        ("Seq2Seq", {"num_decoder_layers": -1}, "num_decoder_layers"),
        ("Seq2Seq", {"num_decoder_layers": 1.5}, "num_decoder_layers"),
        ("Seq2Seq", {"decoder_start_token_id": "start"}, "decoder_start_token_id"),
    ],
)  # fmt: skip
def test_invalid_values_are_rejected(family: str, wrong: dict, message: str):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(family, **wrong)


@every_family
def test_the_defaults_build_a_model(family: str):
    """And no two configs share a mutable default."""
    config = FAMILIES[family]()
    assert config != FAMILIES[family](hidden_size=64)
    assert FAMILIES[family]().to_dict() == config.to_dict()
    assert sum(parameter.numel() for parameter in tiny_model(family).parameters()) > 0


def test_num_decoder_layers():
    """None means as many as the encoder has."""
    assert tiny_config("Seq2Seq", num_hidden_layers=3).num_decoder_layers == 3
    model = language_model("Seq2Seq", num_hidden_layers=3, num_decoder_layers=1)
    assert (len(model.model.encoder.layers), len(model.model.decoder.layers)) == (3, 1)
    assert model.config.num_hidden_layers == 3
    assert model.config.get_text_config(decoder=True).num_hidden_layers == 1
    assert model.config.get_text_config(encoder=True).num_hidden_layers == 3
