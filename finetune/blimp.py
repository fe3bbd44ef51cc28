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
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.checkpoints import load_model, read_config, read_tokenizer, usable_length
from hf_tiny_transformer.common.environment import device_name, keep_freed_memory, quieten_libraries, versions
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import atomic_directory, atomic_write_json, atomic_write_text, require_free_output
from hf_tiny_transformer.common.processes import say
from hf_tiny_transformer.common.sample import load_sample
from hf_tiny_transformer.common.tables import TableFile, read_lines
from hf_tiny_transformer.publish.card import escape, markdown_table

from .data import from_hub

PROGRAM = "hf-tiny-transformer blimp"
HUB_PATH, FILES = "nyu-mll/blimp", 67
FIELDS = ("sentence_good", "sentence_bad", "field", "linguistics_term")
SAMPLE = "sample"
BACK_OFF = 0.4  # as published
LINES_AT_ONCE = 4096
PAIRS_AT_ONCE = 250  # rows of equal length among these share batches
TOKENS_PER_BATCH = 2048  # measured on CPU: more is no faster and takes more memory
LOGITS_PER_BATCH = 2**22  # 16 MiB

Scores = dict[str, np.ndarray]  # by file: (pairs, 2), of the good and of the bad sentences
Ids = tuple[int, ...]


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


@dataclass(frozen=True)
class Paradigm:
    """One file: pairs of a grammatical and an ungrammatical sentence, and the place of each for messages."""

    name: str
    field: str
    term: str
    pairs: list[tuple[str, str]]
    places: list[str]


class Sentence(NamedTuple):
    """Token ids, the positions of the text itself (no special tokens), and each position's word, None outside."""

    ids: Ids
    scored: Ids
    words: Sequence[int | None]


def main(argv: list[str]) -> None:
    """Run the command; the older `--task blimp` is accepted.

    Raises:
        UserError: A flag, the model or the data is wrong; nothing is written then.
    """
    parser = CommandParser(PROGRAM, "Measure how often a language model prefers BLiMP's grammatical sentences.")
    parser.add_settings(BlimpSettings)
    parser.add_argument("--task", type=Literal["blimp"], default="blimp", help="blimp; may be omitted")
    measure(build(BlimpSettings, parser.parse(argv)), shlex.join([*PROGRAM.split(), *argv]))


def measure(settings: BlimpSettings, command: str) -> dict[str, Any]:
    """Score all pairs, print the table, write the files, and return the content of results.json.

    Raises:
        UserError: Any input is wrong; all of it is checked before the first pair is scored.
    """
    quieten_libraries()
    keep_freed_memory()
    output = require_free_output(settings.output)
    model, tokenizer, mask_id = _open(settings)
    paradigms = load_blimp(settings.data)
    if len(paradigms) != FILES:
        say(f"warning: {len(paradigms)} files instead of {FILES}; the figures are not comparable with published ones")
    sentences = {}
    for paradigm in paradigms:
        texts = [text for pair in paradigm.pairs for text in pair]
        sentences[paradigm.name] = encode(tokenizer, texts, causal=mask_id is None)
        _check_lengths(paradigm, sentences[paradigm.name], usable_length(None, model.config, tokenizer))
    baselines = {"fewer words": fewer_words(paradigms)}
    if settings.ngram:
        baselines["trigrams"] = trigrams(settings.ngram, tokenizer, sentences)
    started = time.perf_counter()
    scores = {}
    with tqdm(total=len(paradigms), unit=" files", disable=not sys.stderr.isatty(), leave=False) as bar:
        for name, of_file in sentences.items():
            parts = [of_file[i : i + 2 * PAIRS_AT_ONCE] for i in range(0, len(of_file), 2 * PAIRS_AT_ONCE)]
            found = [score(model, part, mask_id, word_l2r=settings.masking == "word-l2r") for part in parts]
            scores[name] = np.concatenate(found).reshape(-1, 2)
            bar.update()
    seconds = time.perf_counter() - started
    sentences_in_order = b"".join(json.dumps([p.name, p.pairs]).encode() + b"\n" for p in paradigms)
    accuracies = _accuracies(paradigms, scores)
    pairs = sum(record["pairs"] for record in accuracies["files"].values())
    results = {
        "task": "blimp",
        "model": settings.model,
        "scored_by": "log-likelihood" if mask_id is None else f"pseudo-log-likelihood, {settings.masking}",
        **accuracies,
        "baselines": {name: _accuracies(paradigms, its_scores) for name, its_scores in baselines.items()},
        "pairs": pairs,
        "ties": sum(record["ties"] for record in accuracies["files"].values()),
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "data": {"files": len(paradigms), "pairs": pairs, "sha256": hashlib.sha256(sentences_in_order).hexdigest()},
        "versions": versions(("torch", "transformers", "tokenizers", "numpy")),
        "device": device_name(),
        "command": command,
        "seconds": round(seconds, 2),
        "pairs_per_second": round(pairs / seconds, 1),
    }
    _write(output, results, paradigms, scores)
    whole = ("all", str(len(paradigms)), *_percent(results))
    print(markdown_table(("", "files", *_heads(results)), [whole, *_group(results, "terms")]))
    print(f"{results['pairs_per_second']:.0f} pairs/s; {results['ties']} ties; {results['scored_by']}")
    return results


def _open(settings: BlimpSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int | None]:
    """Open the model and its tokenizer; the third is the mask token of an encoder, None for a decoder."""
    source, trust = settings.model, {"trust_remote_code": settings.trust_remote_code}
    config = read_config(source, **trust)
    if config.is_encoder_decoder:
        raise UserError(f"--model {source}: {config.model_type} is sequence-to-sequence; name an encoder or a decoder")
    is_foreign = type(config).__module__.startswith("transformers_modules.")  # code that the user trusts
    classes = [
        auto_class
        for auto_class in (AutoModelForMaskedLM, AutoModelForCausalLM)
        if type(config) in auto_class._model_mapping or (is_foreign and auto_class.__name__ in config.auto_map)
    ]
    if not classes:
        raise UserError(f"--model {source}: model_type {config.model_type!r} has no masked or causal language model")
    auto_class = classes[-1] if getattr(config, "is_decoder", False) else classes[0]
    tokenizer = read_tokenizer(source, config, **trust)
    model = load_model(source, auto_class, config, from_scratch=settings.from_scratch, **trust)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if auto_class is AutoModelForCausalLM:
        return model, tokenizer, None
    if tokenizer.mask_token_id is None:
        raise UserError(f"--model {source}: its tokenizer has no mask_token; set it in tokenizer_config.json")
    if settings.masking == "word-l2r" and not tokenizer.is_fast:
        raise UserError(f"--model {source}: its tokenizer does not report words; use --masking token")
    return model, tokenizer, tokenizer.mask_token_id


def load_blimp(data: str | None) -> list[Paradigm]:
    """Read all paradigms in alphabetical order, from a folder of .jsonl files or (None) from the Hub.

    Raises:
        UserError: A file is missing or wrong, or the Hub cannot be reached.
    """
    if data is None:
        advice = f"check the network, or give --data the folder of BLiMP's {FILES} .jsonl files"
        names = from_hub(datasets.get_dataset_config_names, HUB_PATH, advice=advice)
        read = {name: from_hub(datasets.load_dataset, HUB_PATH, name, split="train", advice=advice) for name in names}
        return [_paradigm(name, f"{HUB_PATH}, {name}", enumerate(read[name], start=1)) for name in sorted(names)]
    files = sorted(file for file in Path(data).iterdir() if file.suffix == ".jsonl") if Path(data).is_dir() else []
    if not files:
        raise UserError(f"--data {data}: not a folder with .jsonl files; name the folder of BLiMP's {FILES} files")
    return [
        _paradigm(file.stem, str(file), ((row.line, row.values) for row in TableFile(file, FIELDS).checked()))
        for file in files
    ]


def _paradigm(name: str, origin: str, rows: Iterable[tuple[int, dict[str, Any]]]) -> Paradigm:
    pairs, places, field, term = [], [], "", ""
    for line, row in rows:
        places.append(f"{origin}, line {line}")
        for key in FIELDS:
            if not isinstance(row[key], str) or not row[key].strip():
                raise UserError(f"{places[-1]}: no text in field {key!r}; copy BLiMP's file again")
        good, bad, field, term = (row[key] for key in FIELDS)
        pairs.append((good, bad))
    if not pairs:
        raise UserError(f"{origin}: no rows; copy BLiMP's file again")
    return Paradigm(name, field.replace("/", "_"), term, pairs, places)  # some files have syntax/semantics


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, causal: bool) -> list[Sentence]:
    """Tokenize texts.

    For a decoder (`causal`), the tokenizer's bos token (else its eos token, which ends documents) precedes a text
    without special tokens at its start, so that the first token is scored too.
    """
    encoded = tokenizer(list(texts), return_special_tokens_mask=True)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    sentences = []
    for index, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        words = encoded.word_ids(index) if tokenizer.is_fast else range(len(ids))
        if causal and start is not None and not special[0]:
            ids, special, words = [start, *ids], [1, *special], [None, *words]
        scored = tuple(position for position, mark in enumerate(special) if not mark)
        sentences.append(Sentence(tuple(ids), scored, words))
    return sentences


def _check_lengths(paradigm: Paradigm, sentences: Sequence[Sentence], limit: int) -> None:
    for number, sentence in enumerate(sentences):
        if len(sentence.ids) > limit:
            problem = f"{len(sentence.ids)} tokens, but the model takes {limit}; name a model that takes more"
            raise UserError(f"{paradigm.places[number // 2]}: {problem}")


def reads(sentence: Sentence, mask_id: int | None, *, word_l2r: bool) -> Iterator[tuple[Ids, int, int]]:
    """Iterate over what is read to score a sentence: input ids, position, and the token predicted there.

    A decoder (`mask_id` is None) predicts a token at the position before it. An encoder predicts a token where it is
    masked (Salazar et al. 2020, equation 1). `word_l2r` also masks the later tokens of the word (Kauf and Ivanova
    2023); otherwise a rare word of several tokens looks likely, since each token reveals the others.
    """
    ids, scored, words = sentence
    for position in scored:
        if mask_id is not None:
            end = position + 1
            while word_l2r and end < len(ids) and words[end] is not None and words[end] == words[position]:
                end += 1
            yield ids[:position] + (mask_id,) * (end - position) + ids[end:], position, ids[position]
        elif position > 0:
            yield ids, position - 1, ids[position]


@torch.inference_mode()
def score(model: PreTrainedModel, sentences: Sequence[Sentence], mask_id: int | None, *, word_l2r: bool) -> np.ndarray:
    """Return the score of each sentence, (sentences,) float64; `mask_id` and `word_l2r` are those of `reads`.

    Equal rows run once, in batches of equal length and thus without padding. Where the class allows, the head runs only
    at the positions that are read. (minicons 0.3.39 gives the same scores within 4e-5. It takes 1.6 times as long for a
    decoder and 10 times for an encoder of ours, and for encoders it needs a method that transformers 5 removed.)
    """
    rows: dict[Ids, list[tuple[int, int, int]]] = defaultdict(list)
    for owner, sentence in enumerate(sentences):
        for ids, position, token in reads(sentence, mask_id, word_l2r=word_l2r):
            rows[ids].append((position, token, owner))
    scores = np.zeros(len(sentences))
    selects = "target_positions" in inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    for batch in _batches(rows, model.config.vocab_size, all_positions=not selects):
        length = len(batch[0])
        wanted = torch.tensor([(i * length + at, *read) for i, ids in enumerate(batch) for at, *read in rows[ids]])
        positions, where = (found.to(model.device) for found in wanted[:, 0].unique(return_inverse=True))
        inputs = {"input_ids": torch.tensor(batch, device=model.device)} | options
        if selects:
            logits = model(**inputs, target_positions=positions).logits.float()
        else:
            logits = model(**inputs).logits.flatten(0, 1)[positions].float()
        log_probabilities = logits[where, wanted[:, 1].to(model.device)] - logits.logsumexp(dim=-1)[where]
        np.add.at(scores, wanted[:, 2].numpy(), log_probabilities.double().cpu().numpy())
    return scores


def _batches(rows: dict[Ids, list[Any]], vocab_size: int, *, all_positions: bool) -> Iterator[list[Ids]]:
    """Iterate over groups of rows of equal length, as many as the limits on tokens and on logits allow."""
    by_length = defaultdict(list)
    for ids in rows:
        by_length[len(ids)].append(ids)
    for length, group in sorted(by_length.items()):
        most_reads = length if all_positions else max(len({at for at, *_ in rows[ids]}) for ids in group)
        size = max(1, min(TOKENS_PER_BATCH // length, LOGITS_PER_BATCH // (vocab_size * most_reads)))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def fewer_words(paradigms: Sequence[Paradigm]) -> Scores:
    """Score a sentence by its number of words: fewer are better, and many pairs tie."""
    return {p.name: -np.array([[len(text.split()) for text in pair] for pair in p.pairs], float) for p in paradigms}


def trigrams(names: Sequence[str], tokenizer: PreTrainedTokenizerBase, sentences: dict[str, list[Sentence]]) -> Scores:
    """Score sentences by trigram counts of tokens with stupid backoff (Brants et al. 2007, equation 5).

    Only n-grams of the sentences are counted, so that memory does not grow with the text. `names` are text files, read
    line by line, or `sample`.

    Raises:
        UserError: A text cannot be read, or there is none.
    """
    texts = {name: [[s.ids[at] for at in s.scored] for s in of_file] for name, of_file in sentences.items()}
    wanted = {gram for of_file in texts.values() for text in of_file for gram in _ngrams(text)}
    counts: Counter[Ids] = Counter()
    total, lines = 0, _lines(names)
    while part := list(islice(lines, LINES_AT_ONCE)):
        for ids in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            total += len(ids)
            counts.update(filter(wanted.__contains__, _ngrams(ids)))
    if total == 0:
        raise UserError(f"--ngram {names[0]}: holds no text; name files that do")

    def share(gram: Ids) -> float:
        if len(gram) == 1:  # a token that was never seen has a share, too
            return (counts[gram] + 1) / (total + len(tokenizer) + 1)
        return counts[gram] / counts[gram[:-1]] if counts[gram] else BACK_OFF * share(gram[1:])

    def score_text(text: list[int]) -> float:
        return sum(math.log(share(tuple(text[max(0, at - 2) : at + 1]))) for at in range(len(text)))

    return {name: np.array([*map(score_text, of_file)]).reshape(-1, 2) for name, of_file in texts.items()}


def _ngrams(ids: Sequence[int]) -> Iterator[Ids]:
    """Iterate over all n-grams up to trigrams."""
    for order in (1, 2, 3):
        yield from zip(*(ids[start:] for start in range(order)), strict=False)


def _lines(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        lines = load_sample().documents if name == SAMPLE else (text for _, text in read_lines(Path(name), "--ngram"))
        yield from filter(None, map(str.strip, lines))


def _accuracies(paradigms: Sequence[Paradigm], scores: Scores) -> dict[str, Any]:
    """Return accuracies between 0 and 1; those of fields, of terms and of the whole are means over their files."""
    files = {}
    for paradigm in paradigms:
        good, bad = scores[paradigm.name].T
        ties = int((good == bad).sum())
        record = {"accuracy": float(((good > bad).sum() + ties / 2) / len(good)), "pairs": len(good), "ties": ties}
        files[paradigm.name] = record | {"field": paradigm.field, "term": paradigm.term}

    def means(key: str) -> dict[str, dict[str, Any]]:
        groups = defaultdict(list)
        for record in files.values():
            groups[record[key]].append(record["accuracy"])
        return {name: {"accuracy": fmean(values), "files": len(values)} for name, values in sorted(groups.items())}

    accuracy = fmean(record["accuracy"] for record in files.values())
    return {"accuracy": accuracy, "fields": means("field"), "terms": means("term"), "files": files}


def _write(output: Path, results: dict[str, Any], paradigms: Sequence[Paradigm], scores: Scores) -> None:
    try:
        with atomic_directory(output) as staging:
            atomic_write_json(staging / "results.json", results)
            atomic_write_text(staging / "report.md", _report(results))
            with (staging / "predictions.csv").open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["file", "index", *FIELDS[:2], "score_good", "score_bad"])
                for paradigm in paradigms:
                    for index, (pair, row) in enumerate(zip(paradigm.pairs, scores[paradigm.name], strict=True)):
                        writer.writerow([paradigm.name, index, *pair, *(f"{score:.6f}" for score in row)])
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror or error}); name another one") from None


def _report(results: dict[str, Any]) -> str:
    heads, fresh = _heads(results), ", fresh weights" if results["settings"]["from_scratch"] else ""
    files = [
        (name, row["term"], row["field"], *_percent(results, "files", name)) for name, row in results["files"].items()
    ]
    return f"""# BLiMP: {100 * results["accuracy"]:.2f}

`{escape(results["model"], "code")}`{fresh}: share of pairs in % whose grammatical sentence has the higher
{results["scored_by"]}, mean over {len(files)} files (a tie counts half; chance is 50).
{results["pairs"]:,} pairs, {results["ties"]} ties, {results["seconds"]:.0f} s on {results["device"]}.

{chr(10).join(f"- {name}: {100 * row['accuracy']:.2f}" for name, row in results["baselines"].items())}

{markdown_table(("field", "files", *heads), _group(results, "fields"))}

{markdown_table(("term", "files", *heads), _group(results, "terms"))}

{markdown_table(("file", "term", "field", *heads), files)}

Command:

```
{escape(results["command"], "block")}
```
"""


def _heads(results: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}, %" for name in ("model", *results["baselines"]))


def _group(results: dict[str, Any], group: str) -> list[tuple[str, ...]]:
    return [(name, str(row["files"]), *_percent(results, group, name)) for name, row in results[group].items()]


def _percent(results: dict[str, Any], *keys: str) -> tuple[str, ...]:
    """Return the accuracies of the model and of the baselines, in percent."""
    cells = []
    for found in (results, *results["baselines"].values()):
        for key in keys:
            found = found[key]
        cells.append(f"{100 * found['accuracy']:.2f}")
    return tuple(cells)
