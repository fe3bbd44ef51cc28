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
    for name in supported(config):
        report(name, lambda name=name: model_problem(directory, name, config))
    report("AutoTokenizer", lambda: tokenizer_problem(directory, config))


def report(name: str, check) -> None:
    """Run one check; an exception is a problem."""
    try:
        problem = check()
    except Exception as error:  # safetensors, torch, transformers and the model's code raise many types
        problem = f"{type(error).__name__}: {error}"
    print(json.dumps({"name": name, "problem": problem}), flush=True)


def supported(config: transformers.PreTrainedConfig) -> list[str]:
    """Return the Auto classes in the config's auto_map, else those that know its stock type."""
    auto_map = getattr(config, "auto_map", None)
    if auto_map:
        return sorted(name for name in auto_map if name.startswith("AutoModel"))
    known = {name: vars(modeling_auto)[name] for name in transformers.__all__ if name in vars(modeling_auto)}
    mappings = {name: getattr(auto, "_model_mapping", None) for name, auto in known.items()}
    return sorted(name for name, mapping in mappings.items() if mapping is not None and type(config) in mapping)


def model_problem(directory: str, name: str, config: transformers.PreTrainedConfig) -> str | None:
    """Check that the saved class has exactly its weights, and that other classes have those of the trunk."""
    model, loading = getattr(transformers, name).from_pretrained(
        directory,
        trust_remote_code=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # reported below
        output_loading_info=True,
    )
    missing, unexpected = set(loading["missing_keys"]), loading["unexpected_keys"]
    missing |= {key for key, *_ in loading["mismatched_keys"]}
    if type(model).__name__ not in (config.architectures or []):
        unexpected = []  # the saved head
        if model.base_model is not model:
            missing = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
        missing = [key for key in missing if "pooler" not in key]
    kinds = (("missing or misshapen", missing), ("unexpected", unexpected))
    problems = [f"{len(keys)} {kind} weights (first: {min(keys)})" for kind, keys in kinds if keys]
    return "; ".join(problems) or None


def tokenizer_problem(directory: str, config: transformers.PreTrainedConfig) -> str | None:
    """Check the tokenizer; without its files, transformers makes an empty one without a message."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        return "no tokenizer.json"
    if max(vocabulary.values()) >= config.vocab_size:
        return f"its highest id is {max(vocabulary.values())}, but vocab_size in config.json is {config.vocab_size}"
    return None


if __name__ == "__main__":
    main(sys.argv[1])
