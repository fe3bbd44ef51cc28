"""Documents to a WordPiece tokenizer, saved so that `AutoTokenizer` loads it as a fast tokenizer."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.common.errors import UserError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTINUATION = "##"
SPANS = [f"[SPAN{i}]" for i in range(64)]  # each replaces a span of the text; Seq2Seq only
# How a text and a pair of texts begin and end. A decoder continues where its prompt ends: no [SEP] there.
TEMPLATES = {
    "encoder": (f"{CLS}:0 $A:0 {SEP}:0", f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1"),
    "bert": (f"{CLS}:0 $A:0 {SEP}:0", f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1"),
    "decoder": (f"{CLS}:0 $A:0", f"{CLS}:0 $A:0 {SEP}:0 $B:1"),
    "seq2seq": (f"$A:0 {SEP}:0", f"$A:0 {SEP}:0 $B:1 {SEP}:1"),
}
GENERATES = ("decoder", "seq2seq")


def train_tokenizer(
    read_documents: Callable[[], Iterable[str]],
    *,
    vocab_size: int,
    lowercase: bool,
    max_length: int,
    family: str,
    progress: bool,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer like BERT's: its normalisation and word splitting, then WordPiece.

    The same text, which is read twice, gives the same tokenizer in every process. `family` decides how a text begins
    and ends, and whether there are tokens for spans.

    Raises:
        UserError: The corpus has fewer than `vocab_size` different pieces.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    special = SPECIAL_TOKENS + (SPANS if family == "seq2seq" else [])
    pieces = _train_pieces(read_documents, normalizer, special, vocab_size=vocab_size, progress=progress)
    if len(pieces) < vocab_size:
        raise UserError(
            f"recipe field vocab_size is {vocab_size}, but the corpus allows only {len(pieces)} pieces; "
            f"lower it (--vocab-size {len(pieces)} or less) or give more text"
        )
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNK, continuing_subword_prefix=CONTINUATION))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)
    single, pair = TEMPLATES[family]
    borders = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=borders)
    generation = {"bos_token": CLS, "eos_token": SEP} if family in GENERATES else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        **generation,
        extra_special_tokens=special[len(SPECIAL_TOKENS) :],
        padding_side="left" if family == "decoder" else "right",  # the ends of a batch of prompts are aligned
        model_max_length=max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if family == "bert" else []), "attention_mask"],
    )


def _train_pieces(
    read_documents: Callable[[], Iterable[str]],
    normalizer: normalizers.BertNormalizer,
    special_tokens: list[str],
    *,
    vocab_size: int,
    progress: bool,
) -> list[str]:
    """Return the pieces of the vocabulary, in the order of their ids.

    The trainer meets continuing letters in the order of a hash table, which differs between processes, and breaks ties
    between merges by that order. As special tokens, in sorted order, they are known from the start.
    """
    letters: set[str] = set()
    for document in read_documents():
        letters.update(*(word[1:] for word in set(normalizer.normalize_str(document).split())))
    # punctuation is a word of its own and continues none
    letters = {c for c in letters if c not in string.punctuation and not unicodedata.category(c).startswith("P")}
    scratch = Tokenizer(WordPiece(unk_token=UNK, continuing_subword_prefix=CONTINUATION))
    scratch.normalizer, scratch.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special_tokens, *(CONTINUATION + letter for letter in sorted(letters))],
        continuing_subword_prefix=CONTINUATION,
        show_progress=progress,
    )
    scratch.train_from_iterator(read_documents(), trainer)
    vocabulary = scratch.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


@dataclass(frozen=True)
class VocabularyFacts:
    """Facts about a vocabulary that the objectives need.

    `is_special` and `starts_word` are indexed by token id; `ordinary_ids` and `span_ids` list ids.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    is_special: np.ndarray
    starts_word: np.ndarray
    ordinary_ids: np.ndarray
    span_ids: np.ndarray


def vocabulary_facts(tokenizer: PreTrainedTokenizerFast) -> VocabularyFacts:
    """Return the facts about a tokenizer's vocabulary."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    is_special = np.isin(np.arange(len(pieces)), tokenizer.all_special_ids)
    return VocabularyFacts(
        cls_id=tokenizer.cls_token_id,
        sep_id=tokenizer.sep_token_id,
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        is_special=is_special,
        starts_word=np.array([not piece.startswith(CONTINUATION) for piece in pieces]),
        ordinary_ids=np.flatnonzero(~is_special),
        span_ids=np.array([number for number, piece in enumerate(pieces) if piece in SPANS], dtype=np.int64),
    )
