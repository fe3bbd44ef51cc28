"""A WordPiece tokenizer trained on the corpus, saved so that `AutoTokenizer` opens it as a fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.runs import UserError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTINUATION = "##"


def train_tokenizer(
    documents: Iterable[str], *, vocab_size: int, lowercase: bool, max_length: int, token_types: bool, progress: bool
) -> PreTrainedTokenizerFast:
    """Trains BERT's kind of tokenizer: BERT's normalisation and word splitting, WordPiece, [CLS] text [SEP].

    Args:
        max_length: what the model takes, stored for truncation.
        token_types: whether the model wants `token_type_ids`.

    Raises:
        UserError: the corpus does not hold `vocab_size` different pieces.
    """
    tokenizer = Tokenizer(WordPiece(unk_token=UNK, continuing_subword_prefix=CONTINUATION))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        continuing_subword_prefix=CONTINUATION,
        show_progress=progress,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"recipe field vocab_size is {vocab_size}, but the corpus allows only {tokenizer.get_vocab_size()} pieces; "
            f"lower it (--vocab_size {tokenizer.get_vocab_size()} or less) or give more text"
        )
    special = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS}:0 $A:0 {SEP}:0", pair=f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        model_max_length=max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
    )


@dataclass(frozen=True)
class VocabularyFacts:
    """What packing and masking need to know of the vocabulary; the arrays are indexed by token id."""

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    is_special: np.ndarray
    starts_word: np.ndarray
    ordinary_ids: np.ndarray


def vocabulary_facts(tokenizer: PreTrainedTokenizerFast) -> VocabularyFacts:
    """Reads the facts off a tokenizer."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    is_special = np.isin(np.arange(len(pieces)), tokenizer.all_special_ids)
    return VocabularyFacts(
        cls_id=tokenizer.cls_token_id,
        sep_id=tokenizer.sep_token_id,
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        is_special=is_special,
        starts_word=np.array([not piece.startswith(CONTINUATION) for piece in pieces]),
        ordinary_ids=np.flatnonzero(~is_special),
    )
