"""BLiMP (Warstadt et al. 2020): how often a language model prefers the grammatical sentence of a pair.

Decoders are scored by log-likelihood, encoders by pseudo-log-likelihood: sums of natural logarithms over tokens.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import math
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.checkpoints import load_model, read_config, read_tokenizer
from hf_tiny_transformer.common.environment import device_name, keep_freed_memory, versions
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import atomic_directory, atomic_write_json, atomic_write_text, require_free_output
from hf_tiny_transformer.common.processes import say
from hf_tiny_transformer.common.sample import load_sample
from hf_tiny_transformer.common.tables import TableFile, read_lines
from hf_tiny_transformer.publish.card import escape, markdown_table
from hf_tiny_transformer.publish.facts import percent

from .data import from_hub

PROGRAM = "hf-tiny-transformer blimp"
HUB_PATH, FILES = "nyu-mll/blimp", 67
FIELDS = ("sentence_good", "sentence_bad", "field", "linguistics_term")
SAMPLE = "sample"
BACK_OFF = 0.4  # as published
LINES_AT_ONCE = 4096
PAIRS_AT_ONCE = 250  # rows of equal length among these share batches
TOKENS_PER_BATCH = 2048  # measured on CPU: larger batches are not faster and take more memory
LOGITS_PER_BATCH = 2**22  # 16 MiB

Ids = tuple[int, ...]
Read = tuple[int, Ids, int, int]  # number of the text, input ids, a position, and the token predicted there
Scores = dict[str, np.ndarray]  # by file: (pairs, 2), of the good and of the bad sentences


class Paradigm(NamedTuple):
    """The content of one file: pairs of a grammatical and an ungrammatical sentence."""

    field: str
    term: str
    pairs: list[tuple[str, str]]


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
        ngram: text files, or `sample`: also score the pairs by trigram counts. With the model's own training text, this
            baseline shows what the model learned beyond neighbouring tokens
        trust_remote_code: run Python that the model's files name
    """

    model: str
    output: str
    data: str | None = None
    masking: Literal["word-l2r", "token"] = "word-l2r"
    from_scratch: bool = False
    ngram: list[str] | None = None
    trust_remote_code: bool = False


def main(argv: list[str]) -> None:
    """Score all pairs, print the table and write the files; the older `--task blimp` is accepted.

    Raises:
        UserError: A flag, the model or the data is wrong; nothing is written then.
    """
    parser = CommandParser(PROGRAM, "Measure how often a language model prefers BLiMP's grammatical sentences.")
    parser.add_settings(BlimpSettings)
    parser.add_argument("--task", type=Literal["blimp"], default="blimp", help="blimp; may be omitted")
    settings = build(BlimpSettings, parser.parse(argv))
    keep_freed_memory()
    output = require_free_output(settings.output)
    model, tokenizer, mask_id = _open(settings)
    files = load_blimp(settings.data)
    if len(files) != FILES:
        say(f"warning: {len(files)} files instead of {FILES}; the figures are not comparable with published ones")
    words = {name: [[-len(text.split()) for text in pair] for pair in file.pairs] for name, file in files.items()}
    baselines = {"fewer words": {name: np.array(counts) for name, counts in words.items()}}
    if settings.ngram:
        baselines["trigrams"] = trigrams(settings.ngram, tokenizer, files)
    started, scores = time.perf_counter(), {}
    for name, (_, _, pairs) in tqdm(files.items(), unit=" files", disable=None, leave=False):
        parts = [[*chain(*pairs[first : first + PAIRS_AT_ONCE])] for first in range(0, len(pairs), PAIRS_AT_ONCE)]
        found = [score(model, reads(tokenizer, part, mask_id, settings.masking), len(part)) for part in parts]
        scores[name] = np.concatenate(found).reshape(-1, 2)
    seconds = time.perf_counter() - started
    in_order = b"".join(json.dumps([name, file.pairs]).encode() + b"\n" for name, file in files.items())
    count = sum(len(file.pairs) for file in files.values())
    results = {
        "task": "blimp",
        "model": settings.model,
        "scored_by": "log-likelihood" if mask_id is None else f"pseudo-log-likelihood, {settings.masking}",
        **_accuracies(files, scores),
        "ties": sum(int((found[:, 0] == found[:, 1]).sum()) for found in scores.values()),
        "baselines": {name: _accuracies(files, its_scores) for name, its_scores in baselines.items()},
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "data": {"files": len(files), "pairs": count, "sha256": hashlib.sha256(in_order).hexdigest()},
        "versions": versions(("torch", "transformers", "tokenizers", "numpy")),
        "device": device_name(),
        "command": shlex.join([*PROGRAM.split(), *argv]),
        "seconds": round(seconds, 2),
    }
    fresh = " with fresh weights" if settings.from_scratch else ""
    summary = f"{results['scored_by']}{fresh}, {count:,} pairs, {results['ties']} ties, {count / seconds:.0f} pairs/s"
    with atomic_directory(output) as staging:
        atomic_write_json(staging / "results.json", results)
        title = f"# BLiMP: {percent(results['accuracy'])}\n\n`{escape(settings.model, 'code')}`: {summary}"
        atomic_write_text(staging / "report.md", f"{title}\n\n{_table(results, 'fields', 'terms', 'files')}\n")
        with (staging / "predictions.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "index", *FIELDS[:2], "score_good", "score_bad"])
            for name, file in files.items():
                for index, (pair, row) in enumerate(zip(file.pairs, scores[name], strict=True)):
                    writer.writerow([name, index, *pair, *(f"{score:.6f}" for score in row)])
    print(_table(results, "terms"))
    print(summary)


def _open(settings: BlimpSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int | None]:
    """Open the model and its tokenizer; the third is the mask token of an encoder, None for a decoder."""
    source, trust = settings.model, {"trust_remote_code": settings.trust_remote_code}
    config = read_config(source, **trust)
    own_classes = getattr(config, "auto_map", {})  # of code that the user trusts
    classes = [
        auto_class
        for auto_class in (AutoModelForMaskedLM, AutoModelForCausalLM)
        if type(config) in auto_class._model_mapping or auto_class.__name__ in own_classes
    ]
    if config.is_encoder_decoder or not classes:
        raise UserError(f"--model {source}: {config.model_type} is neither a masked nor a causal language model")
    auto_class = classes[-1] if getattr(config, "is_decoder", False) else classes[0]
    tokenizer = read_tokenizer(source, config, **trust)
    model = load_model(source, auto_class, config, from_scratch=settings.from_scratch, **trust)
    model.config.use_cache = False  # each row is read once
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if auto_class is AutoModelForCausalLM:
        return model, tokenizer, None
    if tokenizer.mask_token_id is None:
        raise UserError(f"--model {source}: its tokenizer has no mask_token; set it in tokenizer_config.json")
    if settings.masking == "word-l2r" and not tokenizer.is_fast:
        raise UserError(f"--model {source}: its tokenizer does not report words; use --masking token")
    return model, tokenizer, tokenizer.mask_token_id


def load_blimp(data: str | None) -> dict[str, Paradigm]:
    """Read all files in alphabetical order, from a folder of .jsonl files or (None) from the Hub."""
    if data is None:
        advice = f"check the network, or give --data the folder of BLiMP's {FILES} .jsonl files"
        names = from_hub(datasets.get_dataset_config_names, HUB_PATH, advice=advice)
        read = {name: from_hub(datasets.load_dataset, HUB_PATH, name, split="train", advice=advice) for name in names}
    else:
        read = {file.stem: _rows(TableFile(file, FIELDS)) for file in Path(data).glob("*.jsonl")}
    if not read:
        raise UserError(f"--data {data}: not a folder with .jsonl files; name the folder of BLiMP's {FILES} files")
    files = {}
    for name in sorted(read):
        goods, bads, fields, terms = zip(*([row[field] for field in FIELDS] for row in read[name]), strict=True)
        field = fields[0].replace("/", "_")  # as in syntax/semantics
        files[name] = Paradigm(field, terms[0], [*zip(goods, bads, strict=True)])
    return files


def _rows(table: TableFile) -> Iterator[dict[str, str]]:
    for record in table.checked():
        for name, text in record.values.items():
            if not isinstance(text, str) or not text.strip():
                raise table.refuse(record, "no text; copy BLiMP's file again", name)
        yield record.values


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
    for length, group in groupby(sorted(rows, key=len), key=len):
        group = list(group)
        most_reads = length if all_positions else max(len({at for at, *_ in rows[ids]}) for ids in group)
        size = max(1, min(TOKENS_PER_BATCH // length, LOGITS_PER_BATCH // (vocab_size * most_reads)))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def trigrams(names: Sequence[str], tokenizer: PreTrainedTokenizerBase, files: dict[str, Paradigm]) -> Scores:
    """Score sentences by trigram counts of tokens with stupid backoff (Brants et al. 2007, equation 5).

    Only n-grams of the sentences are counted, so that memory does not grow with the text. `names` are text files, read
    line by line, or `sample`.
    """

    def grams(ids: Sequence[int]) -> Iterator[Ids]:
        return chain.from_iterable(zip(*(ids[n:] for n in range(order)), strict=False) for order in (1, 2, 3))

    def tokens(texts: Iterable[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    sentences = {name: tokens(chain(*file.pairs)) for name, file in files.items()}
    wanted = {gram for of_file in sentences.values() for ids in of_file for gram in grams(ids)}
    counts: Counter[Ids] = Counter()
    read = (load_sample().documents if n == SAMPLE else (t for _, t in read_lines(Path(n), "--ngram")) for n in names)
    total, lines = 0, filter(None, map(str.strip, chain.from_iterable(read)))
    while part := [*islice(lines, LINES_AT_ONCE)]:
        for ids in tokens(part):
            total += len(ids)
            counts.update(gram for gram in grams(ids) if gram in wanted)
    if total == 0:
        raise UserError(f"--ngram {names[0]}: holds no text; name files that do")

    def share(gram: Ids) -> float:
        if len(gram) == 1:  # a token that was never seen has a share, too
            return (counts[gram] + 1) / (total + len(tokenizer) + 1)
        return counts[gram] / counts[gram[:-1]] if counts[gram] else BACK_OFF * share(gram[1:])

    def score_ids(ids: list[int]) -> float:
        return sum(math.log(share(tuple(ids[max(0, at - 2) : at + 1]))) for at in range(len(ids)))

    return {name: np.array([*map(score_ids, of_file)]).reshape(-1, 2) for name, of_file in sentences.items()}


def _accuracies(files: dict[str, Paradigm], scores: Scores) -> dict[str, Any]:
    """Return accuracies between 0 and 1; those of fields, of terms and of the whole are means over their files."""
    groups = {"fields": defaultdict(list), "terms": defaultdict(list), "files": defaultdict(list)}
    for name, (field, term, _) in files.items():
        good, bad = scores[name].T
        for group, key in zip(groups.values(), (field, term, name), strict=True):
            group[key].append(float(np.mean((good > bad) + (good == bad) / 2)))
    means = {
        title: {key: {"accuracy": fmean(values), "files": len(values)} for key, values in sorted(group.items())}
        for title, group in groups.items()
    }
    return {"accuracy": fmean(record["accuracy"] for record in means["files"].values()), **means}


def _table(results: dict[str, Any], *groups: str) -> str:
    """Return accuracies in percent as Markdown: the mean over all files, then those of the groups."""
    columns = {"model": results} | results["baselines"]
    found = {"all files": list(columns.values())}
    for group in groups:
        found |= {f"{group[:-1]} {name}": [c[group][name] for c in columns.values()] for name in results[group]}
    rows = [(name, *(percent(cell["accuracy"]) for cell in cells)) for name, cells in found.items()]
    return markdown_table(("", *(f"{name}, %" for name in columns)), rows)
