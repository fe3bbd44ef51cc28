"""BLiMP (Warstadt et al. 2020): how often a language model prefers the grammatical sentence of a pair.

Decoders are scored by log-likelihood, encoders by pseudo-log-likelihood: sums of natural logarithms over tokens.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import shlex
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import datasets
import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.checkpoints import load_model, read_config, read_tokenizer
from hf_tiny_transformer.common.environment import device_name, keep_freed_memory, use_gpu, versions
from hf_tiny_transformer.common.errors import UserError, plural
from hf_tiny_transformer.common.files import atomic_directory, atomic_write_json, atomic_write_text, require_free_output
from hf_tiny_transformer.common.processes import say
from hf_tiny_transformer.common.tables import TableFile
from hf_tiny_transformer.publish.card import escape, markdown_table
from hf_tiny_transformer.publish.facts import percent

from .data import from_hub

PROGRAM = "hf-tiny-transformer blimp"
LANGUAGE_MODELS = (AutoModelForMaskedLM, AutoModelForCausalLM)
HUB_PATH, FILES = "nyu-mll/blimp", 67
FIELDS = ("sentence_good", "sentence_bad", "field", "linguistics_term")
PAIRS_AT_ONCE = 250  # rows of equal length among these share batches
TOKENS_PER_BATCH = 2048  # measured on CPU: larger batches are not faster and take more memory
LOGITS_PER_BATCH = 2**22  # 16 MiB

Ids = tuple[int, ...]
Read = tuple[int, Ids, int, int]  # number of the text, input ids, a position, and the token predicted there
Files = dict[str, list[dict[str, str]]]  # by name: rows with `FIELDS`
Scores = dict[str, np.ndarray]  # by file: (pairs, 2), of the good and of the bad sentences


@dataclass(frozen=True)
class BlimpSettings:
    """Settings of one measurement.

    Args:
        model: directory or Hub id of a masked or causal language model
        output: directory for results.json, report.md and predictions.csv
        data: folder of BLiMP's 67 .jsonl files (default: the Hub's nyu-mll/blimp)
        masking: for encoders: mask a token and the later tokens of its word (word-l2r; PLL-word-l2r of Kauf and Ivanova
            2023), or only the token (token; Salazar et al. 2020)
        from_scratch: measure the same model with fresh weights: the control
        trust_remote_code: run Python that the model's files name
    """

    model: str
    output: str
    data: str | None = None
    masking: Literal["word-l2r", "token"] = "word-l2r"
    from_scratch: bool = False
    trust_remote_code: bool = False


def main(argv: list[str]) -> None:
    """Score all pairs, print the table and write the files."""
    parser = CommandParser(PROGRAM, "Measure how often a language model prefers BLiMP's grammatical sentences.")
    parser.add_settings(BlimpSettings)
    settings = build(BlimpSettings, parser.parse(argv))
    keep_freed_memory()
    output = require_free_output(settings.output)
    model, tokenizer, mask_id = _open(settings)
    files = load_blimp(settings.data)
    if len(files) != FILES:
        counted = f"{plural(len(files), 'file')} instead of {FILES}"
        say(f"warning: {counted}; the figures are not comparable with published ones")
    words = {name: np.array([[-len(text.split()) for text in pair] for pair in _pairs(files[name])]) for name in files}
    started, scores = time.perf_counter(), {}
    for name, rows in tqdm(files.items(), unit=" files", disable=None, leave=False):
        parts = [[*chain(*_pairs(rows[i : i + PAIRS_AT_ONCE]))] for i in range(0, len(rows), PAIRS_AT_ONCE)]
        found = [score(model, reads(tokenizer, part, mask_id, settings.masking), len(part)) for part in parts]
        scores[name] = np.concatenate(found).reshape(-1, 2)
    seconds = time.perf_counter() - started
    in_order = b"".join(json.dumps([name, _pairs(rows)]).encode() + b"\n" for name, rows in files.items())
    data = {"files": len(files), "pairs": sum(map(len, files.values())), "sha256": hashlib.sha256(in_order).hexdigest()}
    results = {
        "task": "blimp",
        "model": settings.model,
        "scored_by": "log-likelihood" if mask_id is None else f"pseudo-log-likelihood, {settings.masking}",
        **_accuracies(files, scores),
        "ties": sum(int((found[:, 0] == found[:, 1]).sum()) for found in scores.values()),
        "baselines": {"fewer words": _accuracies(files, words)},
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "data": data,
        "versions": versions(("torch", "transformers", "tokenizers", "numpy")),
        "device": device_name(),
        "command": shlex.join([*PROGRAM.split(), *argv]),
        "seconds": round(seconds, 2),
    }
    _write(output, results, files, scores)


def _write(output: Path, results: dict[str, Any], files: Files, scores: Scores) -> None:
    pairs, fresh = results["data"]["pairs"], " with fresh weights" if results["settings"]["from_scratch"] else ""
    counts = f"{plural(pairs, 'pair')}, {plural(results['ties'], 'tie')}"
    summary = f"{results['scored_by']}{fresh}, {counts}, {results['seconds']:.0f} s"
    with atomic_directory(output) as staging:
        atomic_write_json(staging / "results.json", results)
        title = f"# BLiMP: {percent(results['accuracy'])}\n\n`{escape(results['model'], 'code')}`: {summary}"
        atomic_write_text(staging / "report.md", f"{title}\n\n{_table(results, 'fields', 'terms', 'files')}\n")
        with (staging / "predictions.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "index", *FIELDS[:2], "score_good", "score_bad"])
            for name, rows in files.items():
                for index, (pair, found) in enumerate(zip(_pairs(rows), scores[name], strict=True)):
                    writer.writerow([name, index, *pair, *(f"{score:.6f}" for score in found)])
    print(f"{_table(results, 'terms')}\n{summary}")


def _open(settings: BlimpSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int | None]:
    """Open the model and its tokenizer; the third is the mask token of an encoder, None for a decoder."""
    source, trust = settings.model, settings.trust_remote_code
    config = read_config(source, trust_remote_code=trust)
    own = getattr(config, "auto_map", {})  # classes in code that the user trusts
    classes = [c for c in LANGUAGE_MODELS if type(config) in c._model_mapping or c.__name__ in own]
    if config.is_encoder_decoder or not classes:
        raise UserError(f"--model {source}: {config.model_type} is neither a masked nor a causal language model")
    auto_class = classes[-1] if getattr(config, "is_decoder", False) else classes[0]
    tokenizer = read_tokenizer(source, config, trust_remote_code=trust)
    model = load_model(source, auto_class, config, from_scratch=settings.from_scratch, trust_remote_code=trust)
    model.config.use_cache = False  # each row is read once
    use_gpu(model)
    if auto_class is AutoModelForCausalLM:
        return model, tokenizer, None
    if tokenizer.mask_token_id is None:
        raise UserError(f"--model {source}: its tokenizer has no mask_token; set it in tokenizer_config.json")
    if settings.masking == "word-l2r" and not tokenizer.is_fast:
        raise UserError(f"--model {source}: its tokenizer does not report words; use --masking token")
    return model, tokenizer, tokenizer.mask_token_id


def load_blimp(data: str | None) -> Files:
    """Read all files in alphabetical order, from a folder of .jsonl files or (None) from the Hub."""
    if data is None:
        advice = f"check the network, or give --data the folder of BLiMP's {FILES} .jsonl files"
        names = sorted(from_hub(datasets.get_dataset_config_names, HUB_PATH, advice=advice))
        return {
            name: list(from_hub(datasets.load_dataset, HUB_PATH, name, split="train", advice=advice)) for name in names
        }
    files: Files = {}
    for path in sorted(Path(data).glob("*.jsonl")):
        table = TableFile(path, FIELDS)
        for record in table.checked():
            for name, text in record.values.items():
                if not isinstance(text, str) or not text.strip():
                    raise table.refuse(record, "no text; copy BLiMP's file again", name)
            files.setdefault(path.stem, []).append(record.values)
    if not files:
        raise UserError(f"--data {data}: not a folder with .jsonl files; name the folder of BLiMP's {FILES} files")
    return files


def _pairs(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["sentence_good"], row["sentence_bad"]) for row in rows]


def reads(tokenizer: PreTrainedTokenizerBase, texts: list[str], mask_id: int | None, masking: str) -> Iterator[Read]:
    """Iterate over what is read to score texts.

    A decoder (`mask_id` is None) predicts a token at the position before it. The tokenizer's bos token (else its eos
    token, which ends documents) precedes a text without special tokens at its start, so that the first token is scored
    too. An encoder predicts a token where it is masked (Salazar et al. 2020, equation 1). word-l2r also masks the later
    tokens of the word (Kauf and Ivanova 2023); otherwise a rare word of several tokens looks likely, since each token
    reveals the others.
    """
    encoded = tokenizer(texts, return_special_tokens_mask=True)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for text, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        if mask_id is None and start is not None and not special[0]:
            ids, special = [start, *ids], [1, *special]
        units = encoded.word_ids(text) if mask_id is not None and masking == "word-l2r" else range(len(ids))
        for at in (at for at in range(len(ids)) if not special[at]):
            if mask_id is not None:
                later = zip(ids[at:], units[at:], strict=True)
                masked = [*ids[:at], *(mask_id if unit == units[at] else token for token, unit in later)]
                yield text, tuple(masked), at, ids[at]
            elif at > 0:
                yield text, tuple(ids), at - 1, ids[at]


@torch.inference_mode()
def score(model: PreTrainedModel, found: Iterable[Read], count: int) -> np.ndarray:
    """Return the scores, (count,) float64, of texts from what `reads` found.

    Equal rows run once, in batches of equal length and thus without padding. Where the class allows, the head runs only
    at the positions that are read. minicons 0.3.39 gives the same scores within 4e-5, but takes 1.6 times as long for a
    decoder and 10 times for our encoder.
    """
    rows: dict[Ids, list[tuple[int, int, int]]] = defaultdict(list)
    for text, ids, position, token in found:
        rows[ids].append((position, token, text))
    longest, limit = max(map(len, rows)), getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise UserError(f"--model: a sentence has {longest} tokens, but the model takes {limit}; name another model")
    scores = np.zeros(count)
    selects = "target_positions" in inspect.signature(model.forward).parameters
    for batch in _batches(rows, model.config.vocab_size, all_positions=not selects):
        length = len(batch[0])
        wanted = torch.tensor([(i * length + at, *read) for i, ids in enumerate(batch) for at, *read in rows[ids]])
        positions, where = (found.to(model.device) for found in wanted[:, 0].unique(return_inverse=True))
        inputs = torch.tensor(batch, device=model.device)
        if selects:
            logits = model(input_ids=inputs, target_positions=positions).logits.float()
        else:
            logits = model(input_ids=inputs).logits.flatten(0, 1)[positions].float()
        log_probabilities = logits[where, wanted[:, 1].to(model.device)] - logits.logsumexp(dim=-1)[where]
        np.add.at(scores, wanted[:, 2].numpy(), log_probabilities.double().cpu().numpy())
    return scores


def _batches(rows: dict[Ids, list[Any]], vocab_size: int, *, all_positions: bool) -> Iterator[list[Ids]]:
    """Iterate over groups of rows of equal length, as many as the limits on tokens and on logits allow."""
    for length, found in groupby(sorted(rows, key=len), key=len):
        group = list(found)
        most_reads = length if all_positions else max(len({at for at, *_ in rows[ids]}) for ids in group)
        size = max(1, min(TOKENS_PER_BATCH // length, LOGITS_PER_BATCH // (vocab_size * most_reads)))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _accuracies(files: Files, scores: Scores) -> dict[str, Any]:
    """Return accuracies between 0 and 1; those of fields, of terms and of the whole are means over their files."""
    means, titles = {}, {"fields": "field", "terms": "linguistics_term", "files": None}
    for title, column in titles.items():
        groups = defaultdict(list)
        for name, rows in files.items():
            good, bad = scores[name].T
            key = rows[0][column].replace("/", "_") if column else name  # as in syntax/semantics
            groups[key].append(float(np.mean((good > bad) + (good == bad) / 2)))
        means[title] = {key: {"accuracy": fmean(found), "files": len(found)} for key, found in sorted(groups.items())}
    return {"accuracy": fmean(record["accuracy"] for record in means["files"].values()), **means}


def _table(results: dict[str, Any], *groups: str) -> str:
    """Return accuracies in percent as Markdown: the mean over all files, then those of the groups."""
    columns = {"model": results} | results["baselines"]
    found = {"all files": list(columns.values())}
    for group in groups:
        found |= {f"{group[:-1]} {name}": [c[group][name] for c in columns.values()] for name in results[group]}
    rows = [(name, *(percent(cell["accuracy"]) for cell in cells)) for name, cells in found.items()]
    return markdown_table(("", *(f"{name}, %" for name in columns)), rows)
