"""Opens a model directory through every Auto class that serves it, as a stranger does: run as a script, in a process
that has not imported this package. Prints a JSON object for each class: its name, and what is wrong with it or null."""

import json
import sys

import transformers
from transformers.models.auto import modeling_auto


def main(directory: str) -> None:
    """Prints the answers, the tokenizer's last."""
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
    for name in served(config):
        answer(name, lambda name=name: wrong_with_model(directory, name, config))
    answer("AutoTokenizer", lambda: wrong_with_tokenizer(directory, config))


def answer(name: str, check) -> None:
    """Runs one check; whatever it raises is what is wrong."""
    try:
        problem = check()
    except Exception as error:  # safetensors, torch, transformers and the model's own code raise what they like
        problem = f"{type(error).__name__}: {error}"
    print(json.dumps({"name": name, "problem": problem}), flush=True)


def served(config: transformers.PreTrainedConfig) -> list[str]:
    """The Auto classes that open a model of `config`: what its auto_map names, else those that know its stock type."""
    auto_map = getattr(config, "auto_map", None)
    if auto_map:
        return sorted(name for name in auto_map if name.startswith("AutoModel"))
    known = {name: vars(modeling_auto)[name] for name in transformers.__all__ if name in vars(modeling_auto)}
    mappings = {name: getattr(auto, "_model_mapping", None) for name, auto in known.items()}
    return sorted(name for name, mapping in mappings.items() if mapping is not None and type(config) in mapping)


def wrong_with_model(directory: str, name: str, config: transformers.PreTrainedConfig) -> str | None:
    """Every weight must be there for the class that was saved; for another, whose head is new, those of the trunk."""
    model, loading = getattr(transformers, name).from_pretrained(
        directory,
        trust_remote_code=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # told apart below
        output_loading_info=True,
    )
    missing, unexpected = set(loading["missing_keys"]), loading["unexpected_keys"]
    missing |= {key for key, *_ in loading["mismatched_keys"]}
    if type(model).__name__ not in (config.architectures or []):
        unexpected = []  # the other head
        if model.base_model is not model:
            missing = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
        missing = [key for key in missing if "pooler" not in key]
    kinds = (("missing or misshapen", missing), ("unexpected", unexpected))
    told = [f"{kind} weights: {min(keys)} ({len(keys)} such)" for kind, keys in kinds if keys]
    return "; ".join(told) or None


def wrong_with_tokenizer(directory: str, config: transformers.PreTrainedConfig) -> str | None:
    """Without tokenizer files transformers makes an empty one and says nothing."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        return "no tokenizer.json"
    if max(vocabulary.values()) >= config.vocab_size:
        return f"its highest id is {max(vocabulary.values())}, config.json's vocab_size {config.vocab_size}"
    return None


if __name__ == "__main__":
    main(sys.argv[1])
