"""Protects documents and their packing: duplicates, a stable split, and the same bytes by any number of processes."""

import gzip
import json
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from pretraining import ROOT, command, make_tokenizer, pack, run, start

from hf_tiny_transformer.common.errors import UserError
from pretrain.data import documents as splitting
from pretrain.data import packed as packing
from pretrain.data import sources
from pretrain.data.documents import DUPLICATE, TRAIN, VALIDATION, documents_of, open_corpus
from pretrain.data.packed import PackedTokens, open_packed, write_shards
from pretrain.data.sources import open_sources

PROGRAM = [str(ROOT / "tests" / "pretrain" / "small_portions.py")]


def corpus_of(path, share=0.2):
    return open_corpus(
        [str(name) for name in ([path] if not isinstance(path, list) else path)],
        text_field="text",
        validation_share=share,
    )


@pytest.fixture(scope="module")
def folder(documents, tmp_path_factory):
    """The 300 documents in seven files of several kinds, some of them twice."""
    path = tmp_path_factory.mktemp("corpus")
    parts = [documents[i : i + 50] for i in range(0, 300, 50)]
    for number, part in enumerate([*parts, documents[20:80]]):
        if number % 3 == 0:
            (path / f"{number}.txt").write_text("\n\n".join(part), encoding="utf-8")
        elif number % 3 == 1:
            (path / f"{number}.txt.gz").write_bytes(gzip.compress("\n\n".join(part).encode()))
        else:
            (path / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    (path / "0-none.txt").write_text("\n\n")
    return path


def test_duplicates_are_found_wherever_they_are(tmp_path, monkeypatch):
    """In chunks and comparisons much smaller than the corpus, the first of equal documents stays."""
    monkeypatch.setattr(splitting, "CHUNK", 7)
    monkeypatch.setattr(splitting, "PART", 16)
    texts = [f"document {i * i % 211}" for i in range(500)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    corpus = corpus_of(tmp_path / "a.txt")
    held_out, train = list(corpus.split(VALIDATION)), list(corpus.train())
    assert [text for text in dict.fromkeys(texts) if text not in held_out] == train
    assert corpus.facts["documents"] == len(set(texts)) == len(held_out) + len(train)
    assert corpus.facts["duplicates"] == 500 - len(set(texts))
    assert corpus.facts["characters"] == sum(map(len, {*texts}))


def test_a_corpus_is_read_again_only_when_it_changed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TINY_TRANSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "PORTION", 10)
    names = [str(path) for path in sorted(folder.iterdir())]
    first = corpus_of(names[:-1]).facts["fingerprint"]
    hashed, hash_documents = [], splitting._hash_documents

    def noted(portion, *rest, **more):
        hashed.append(portion)
        hash_documents(portion, *rest, **more)

    monkeypatch.setattr(splitting, "_hash_documents", noted)
    assert corpus_of(names[:-1]).facts["fingerprint"] == first and not hashed
    assert corpus_of(names).facts["fingerprint"] != first
    assert [source.identity.split()[0] for portion in hashed for source in portion] == names[-1:]


def test_the_split_depends_on_each_document_alone(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"document {i}" for i in range(400)))
    (tmp_path / "b.txt").write_text("\n".join(f"another {i}" for i in range(100)))
    alone, both = corpus_of(tmp_path / "a.txt", 0.1), corpus_of([tmp_path / "b.txt", tmp_path / "a.txt"], 0.1)
    held_out = set(alone.split(VALIDATION))
    assert 20 < len(held_out) < 60
    assert held_out.isdisjoint(alone.train()) and held_out.isdisjoint(both.train())
    assert held_out <= set(both.split(VALIDATION))


def test_how_text_is_cut_into_files_changes_neither_split_nor_order(folder, tmp_path, monkeypatch):
    names = [str(path) for path in sorted(folder.iterdir())]
    (tmp_path / "whole.txt").write_text("\n\n".join(documents_of(open_sources(names, text_field="text"))))
    one = corpus_of(tmp_path / "whole.txt", 0.1)
    monkeypatch.setattr(sources, "PORTION", 4000)
    many = corpus_of(names, 0.1)
    assert len(one.portions) == 1 and len(many.portions) > 4
    assert one.facts == many.facts and many.facts["duplicates"] == 60
    assert list(one.train()) == list(many.train()) and list(one.split(VALIDATION)) == list(many.split(VALIDATION))


def prepared(cache):
    """Return the only prepared corpus in a cache."""
    (directory,) = (path for path in (cache / "corpora").iterdir() if path.is_dir())
    return directory


def launch(cache, corpus, output, **environment):
    """Run on two processes; return the exit status and what was printed."""
    process = start(
        "cpu-2.yaml",
        corpus,
        output,
        "--max-steps=1",
        program=PROGRAM,
        HF_TINY_TRANSFORMER_CACHE=str(cache),
        **environment,
    )
    text, _ = process.communicate(timeout=240)
    return process.returncode, text


def written(text):
    return set(re.findall(r"wrote (\S+)", text))


@pytest.mark.slow
def test_two_processes_prepare_the_bytes_of_one_and_a_crash_costs_a_shard(folder, tmp_path, monkeypatch):
    """The second process is killed in a shard; the next launch continues there, to the bytes that one process makes."""
    monkeypatch.setenv("HF_TINY_TRANSFORMER_CACHE", str(tmp_path / "alone"))
    monkeypatch.setattr(sources, "PORTION", 4000)
    monkeypatch.setattr(packing, "SHARD", 10)
    assert run(command(folder, tmp_path / "one", "--max-steps=1")) == 0
    alone = prepared(tmp_path / "alone")

    status, crashed = launch(tmp_path / "cache", folder, tmp_path / "two", KILLED_AT="00000003/000002")
    assert status != 0 and "SIGKILL" in crashed
    assert {"00000001/000000", "00000003/000000", "00000003/000001"} <= written(crashed)
    assert not (tmp_path / "two").exists()
    assert prepared(tmp_path / "cache").suffix == ".unfinished"

    status, done = launch(tmp_path / "cache", folder, tmp_path / "two")
    assert status == 0, done
    assert not written(done) & written(crashed), "finished shards are not written again"
    assert "00000003/000002" in written(done)
    together = prepared(tmp_path / "cache")
    assert together.name == alone.name
    for name in ("train.bin", "validation.bin", "facts.json", "tokenizer/tokenizer.json"):
        assert (together / name).read_bytes() == (alone / name).read_bytes(), name
    assert not list(together.glob("shards*"))
    records = [json.loads((tmp_path / name / "training/run.json").read_text()) for name in ("one", "two")]
    assert records[0]["corpus_fingerprint"] == records[1]["corpus_fingerprint"]


@pytest.mark.slow
def test_bad_input_of_one_process_ends_all_with_one_line(folder, tmp_path):
    """The second process finds it."""
    broken = tmp_path / "corpus"
    broken.mkdir()
    (broken / "a.txt").write_text((folder / "0.txt").read_text())
    (broken / "b.jsonl").write_text('{"text": "fine"}\n{"text": "cut of')
    assert (broken / "a.txt").stat().st_size > 4000, "two portions"
    status, text = launch(tmp_path / "cache", broken, tmp_path / "out")
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "b.jsonl, line 2: broken JSON" in lines[0]
    assert status != 0 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tokenizer(documents):
    return make_tokenizer(documents)


def test_packing_continues_after_the_last_whole_shard(documents, tokenizer, tmp_path, monkeypatch):
    """After a crash the bytes are the same, and no finished shard is tokenised again."""
    monkeypatch.setattr(packing, "SHARD", 70)
    monkeypatch.setattr(packing, "BATCH", 30)
    fates = np.random.default_rng(0).choice([TRAIN, VALIDATION, DUPLICATE], len(documents)).astype(np.uint8)
    write_shards(documents, fates, tokenizer, tmp_path / "whole")
    assert len(list((tmp_path / "whole").iterdir())) == -(-len(documents) // 70)

    def interrupted():
        yield from documents[:150]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted(), fates, tokenizer, tmp_path / "half")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "half").iterdir()}
    assert sorted(path.name for path in times) == ["000000", "000001"]
    write_shards(documents, fates, tokenizer, tmp_path / "half")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for path in (tmp_path / "whole").glob("*/*.bin"):
        assert (tmp_path / "half" / path.parent.name / path.name).read_bytes() == path.read_bytes()
    write_shards(interrupted(), fates, tokenizer, tmp_path / "half")  # where all is there, nothing is read

    texts = {TRAIN: [], VALIDATION: []}
    for text, fate in zip(documents, fates.tolist(), strict=True):
        texts.get(fate, []).append(text)
    packing.join_shards([tmp_path / "half"], tmp_path, len(tokenizer))
    for fate, split in packing.SPLITS.items():
        expected = [i for text in texts[fate] for i in tokenizer(text)["input_ids"]]
        assert np.fromfile(tmp_path / f"{split}.bin", dtype=np.uint16).tolist() == expected


def test_long_documents_are_tokenised_few_at_a_time(monkeypatch):
    monkeypatch.setattr(packing, "BATCH", 3)
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 10)
    texts = [(text, TRAIN) for text in ("a", "b", "c", "d" * 20, "e" * 6, "f" * 6, "g")]
    assert [len(batch) for batch in packing._batches(iter(texts))] == [3, 1, 2, 1]


def test_text_that_looks_like_a_special_token_stays_text(tokenizer, tmp_path):
    ids = np.fromfile(pack(["the [MASK] film [SEP] ends"], tokenizer, tmp_path), dtype=np.uint16)
    assert tokenizer.mask_token_id not in ids
    assert (ids == tokenizer.sep_token_id).sum() == 1
    assert tokenizer("the [MASK] film")["input_ids"].count(tokenizer.mask_token_id) == 1, "but users may still write it"


def test_a_corpus_smaller_than_one_block(documents, tokenizer, tmp_path):
    path = pack(documents[:1], tokenizer, tmp_path)
    assert isinstance(open_packed(path, 120, 2, block_size=8, what="train").tokens, np.memmap)
    with pytest.raises(UserError, match="less than one block of 4096"):
        open_packed(path, 120, 2, block_size=4096, what="train")


def test_documents_begin_at_cls():
    data = PackedTokens(np.array([2, 7, 3, 2, 8, 9, 3, 2], dtype=np.uint16), cls_id=2)
    assert data.document_starts().tolist() == [0, 3, 7] and data.num_blocks(3) == 2
    assert data.blocks(np.array([1, 0]), 3).tolist() == [[2, 8, 9], [2, 7, 3]]


def test_a_vocabulary_larger_than_the_corpus_allows(documents):
    with pytest.raises(UserError, match=r"vocab_size is 50000, but the corpus allows only \d+ pieces"):
        make_tokenizer(documents, vocab_size=50000)


@pytest.mark.slow
def test_two_processes_train_the_same_tokenizer(documents, tokenizer, tmp_path):
    """The trainer's own numbering follows a hash table that is seeded differently in every process."""
    (tmp_path / "texts.json").write_text(json.dumps(documents))
    program = (
        "import json, sys; sys.path.insert(0, 'tests'); from pretraining import make_tokenizer\n"
        "make_tokenizer(json.load(open(sys.argv[1]))).save_pretrained(sys.argv[2])"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "texts.json"), str(tmp_path / "other")]
    subprocess.run(arguments, check=True, cwd=ROOT)
    tokenizer.save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == (tmp_path / "other" / "tokenizer.json").read_bytes()


@pytest.mark.skipif(not all(map(find_spec, ("datatrove", "orjson", "spacy"))), reason='needs: pip install -e ".[web]"')
def test_the_datatrove_recipe_writes_shards_that_pretrain_reads(tmp_path):
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice([*"aeioulmnrst"], size)) for size in generator.integers(4, 9, 500)]
    words += ["the", "of", "and", "to", "with"] * 50
    texts = [" ".join(generator.choice(words, 150)) for _ in range(30)]
    near_duplicate = f"One word more: {texts[3]}"
    source = tmp_path / "crawl.txt"
    source.write_text("\n\n".join([*texts, near_duplicate, "too short", "buy " * 200]))
    arguments = ["-m", "docs.prepare_with_datatrove", str(source), "--output", str(tmp_path / "shards")]
    arguments += ["--tasks=2", "--workers=1"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    kept = sorted(documents_of(open_sources([str(tmp_path / "shards" / "*.jsonl.gz")], text_field="text")))
    assert len(kept) == 30 and set(kept) <= {*texts, near_duplicate}
