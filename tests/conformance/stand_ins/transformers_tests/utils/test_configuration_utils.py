"""Replaces a table of transformers' tests that its source distribution lacks."""

# Every field of all configurations, with a value that is not its default.
config_common_kwargs = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "no", 1: "yes", 2: "perhaps"},
    "is_encoder_decoder": True,
    "label2id": {"no": 0, "yes": 1, "perhaps": 2},
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
