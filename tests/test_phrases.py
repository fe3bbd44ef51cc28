"""Protects SST-2's validation: whole sentences, and no part of them that stands in them alone is trained on."""

from finetune.examples import Example
from finetune.phrases import hold_out_sentences

SENTENCES = [f"a dull film number {i} about cat s" for i in range(30)]


def examples(*texts: str) -> list[Example]:
    return [Example((text,), i % 2) for i, text in enumerate(texts)]


def phrases_of(sentence: str) -> list[str]:
    words = sentence.split()
    return [" ".join(words[:3]), " ".join(words[2:5]), " ".join(words[-3:]), " ".join(words[4:5])]


def test_validation_is_sentences_and_training_holds_no_part_of_them_alone():
    rows = examples(*[text for sentence in SENTENCES for text in [*phrases_of(sentence), sentence]])
    train, validation = hold_out_sentences(rows)
    held_out = [example.texts[0] for example in validation]
    assert len(held_out) == 3 and set(held_out) <= set(SENTENCES)
    trained = {example.texts[0] for example in train}
    for sentence in held_out:
        assert not trained & {sentence, "film number " + sentence.split()[4], sentence.split()[4]}
    assert {"a dull film", "about cat s"} <= trained, "what stands in other sentences too may be trained on"
    lost = [row for row in rows if row not in train and row not in validation]
    assert {text for row in lost for text in row.texts} <= {part for text in held_out for part in phrases_of(text)}


def test_parts_are_whole_words_and_spaces_do_not_count():
    rows = examples("the cats  sit", "the cat", "cats sit", "cat", *[f"other {i}" for i in range(8)])
    train, validation = hold_out_sentences(rows)
    chosen = {example.texts[0] for example in validation}
    assert len(chosen) == 1
    assert chosen.isdisjoint({"cats sit", "cat"}), "a part is no sentence, with one space or two"
    assert len(train) + len(chosen) == len(rows) - ("the cats  sit" in chosen or "the cat" in chosen)


def test_the_split_is_the_same_every_time_and_keeps_equal_rows_together():
    rows = examples(*[text for text in SENTENCES for _ in range(2)])
    first, second = hold_out_sentences(rows), hold_out_sentences(rows)
    assert first == second
    train, validation = first
    assert {row.texts for row in train}.isdisjoint({row.texts for row in validation})
