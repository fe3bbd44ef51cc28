"""Open a model directory through every Auto class that supports it; prints a JSON object {name, problem} for each.

This is a script for a process that has not imported this package, like that of a user of the published model.
"""

import json
import sys

import transformers
from transformers.models.auto import modeling_auto


def main(directory: str) -> None:
    """Print the results, the tokenizer's last."""
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
    for name in [*supported(config), "AutoTokenizer"]:
        try:
            problem = (tokenizer_problem if name == "AutoTokenizer" else model_problem)(directory, name, config)
        except Exception as error:  # safetensors, torch, transformers and the model's code raise many types
            problem = f"{type(error).__name__}: {error}"
        print(json.dumps({"name": name, "problem": problem}), flush=True)


def supported(config: transformers.PreTrainedConfig) -> list[str]:
    """Return the Auto classes in the config's auto_map, else those that know its stock type."""
    if own := getattr(config, "auto_map", None):
        return sorted(name for name in own if name.startswith("AutoModel"))
    autos = {name: auto for name, auto in vars(modeling_auto).items() if name.startswith("AutoModel")}
    return sorted(name for name, auto in autos.items() if type(config) in (auto._model_mapping or ()))


def model_problem(directory: str, name: str, config: transformers.PreTrainedConfig) -> str | None:
    """Check that the saved class has exactly its weights, and that other classes have those of the trunk."""
    model, loading = getattr(modeling_auto, name).from_pretrained(
        directory,
        trust_remote_code=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # reported below
        output_loading_info=True,
    )
    missing, unexpected = set(loading["missing_keys"]), loading["unexpected_keys"]
    missing |= {key for key, *_ in loading["mismatched_keys"]}
    if type(model).__name__ not in (config.architectures or []):
        trunk = f"{model.base_model_prefix}." if model.base_model is not model else ""
        missing = {key for key in missing if key.startswith(trunk) and "pooler" not in key}
        unexpected = set()  # the saved head
    kinds = (("missing or misshapen", missing), ("unexpected", unexpected))
    return "; ".join(f"{len(keys)} {kind} weights (first: {min(keys)})" for kind, keys in kinds if keys) or None


def tokenizer_problem(directory: str, name: str, config: transformers.PreTrainedConfig) -> str | None:
    """Check the tokenizer; without its files, transformers makes an empty one without a message."""
    tokenizer = getattr(transformers, name).from_pretrained(directory, trust_remote_code=True)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        return "no tokenizer.json"
    highest = max(vocabulary.values())
    return None if highest < config.vocab_size else f"its highest id is {highest}, vocab_size {config.vocab_size}"


if __name__ == "__main__":
    main(sys.argv[1])
