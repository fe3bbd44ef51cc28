"""Protects data prepared by several processes: the same bytes as by one, read as one array; streams; crashes."""

import gzip
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import datasets
import numpy as np
import pytest
from test_pretrain import ROOT, command, refused

from hf_tiny_transformer.runs import UserError, run_cli
from pretrain import packing, readers, survey
from pretrain.cli import main
from pretrain.corpus import open_corpus
from pretrain.packing import JoinedTokens, PackedTokens, open_packed, write_packed
from pretrain.readers import Source, divide, open_sources
from pretrain.tokenizer import train_tokenizer

PROGRAM = ROOT / "tests" / "small_portions.py"
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "pretrain" / "launch" / "cpu-2.yaml")]


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


def prepared(cache):
    """What lies in the only prepared corpus there."""
    (directory,) = (path for path in (cache / "corpora").iterdir() if path.is_dir())
    return directory


def tokens(directory, kind):
    """All bytes, in the order of the files."""
    return b"".join(path.read_bytes() for path in sorted((directory / kind).iterdir()))


def launch(cache, *, corpus, output, killed_at=None):
    """On two processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"HF_TINY_TRANSFORMER_CACHE": str(cache)} | ({"KILLED_AT": killed_at} if killed_at else {})
    arguments = [sys.executable, *LAUNCH, str(PROGRAM), *command(corpus, output, "--max-steps=1")]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)


def written(done):
    return set(re.findall(r"wrote (\S+)", done.stderr))


def test_two_processes_prepare_what_one_does_and_a_crash_costs_a_shard(folder, tmp_path, monkeypatch):
    """The second process is killed inside a portion; the next launch goes on from there, to the bytes that one process
    makes alone, and to the run that it makes of them."""
    monkeypatch.setenv("HF_TINY_TRANSFORMER_CACHE", str(tmp_path / "alone"))
    for name, module, value in (("PORTION", readers, 4000), ("SHARD", packing, 10)):
        monkeypatch.setattr(module, name, value)
    assert run_cli(lambda: main(command(folder, tmp_path / "one", "--max-steps=1"))) == 0
    alone = prepared(tmp_path / "alone")
    assert len(list((alone / "train").iterdir())) > 4

    two = {"corpus": folder, "output": tmp_path / "two"}
    crashed = launch(tmp_path / "cache", **two, killed_at="train-000003/000002.bin")
    assert crashed.returncode != 0 and "SIGKILL" in crashed.stderr
    assert {"train-000001/000000.bin", "train-000003/000000.bin", "train-000003/000001.bin"} <= written(crashed)
    assert not (tmp_path / "two").exists()
    assert prepared(tmp_path / "cache").suffix == ".unfinished"

    done = launch(tmp_path / "cache", **two)
    assert done.returncode == 0, done.stderr
    assert not written(done) & written(crashed), "what was finished is not done again"
    assert "train-000003/000002.bin" in written(done)
    together = prepared(tmp_path / "cache")
    for kind in ("train", "validation"):
        assert sorted(path.name for path in (together / kind).iterdir()) == sorted(
            path.name for path in (alone / kind).iterdir()
        )
        assert tokens(together, kind) == tokens(alone, kind)
    assert together.name == alone.name
    assert (together / "facts.json").read_text() == (alone / "facts.json").read_text()
    records = [json.loads((tmp_path / name / "training/run.json").read_text()) for name in ("one", "two")]
    assert records[0]["corpus_fingerprint"] == records[1]["corpus_fingerprint"]


def test_bad_input_of_one_process_ends_all_with_one_line(folder, tmp_path):
    """The second process finds it."""
    broken = tmp_path / "corpus"
    broken.mkdir()
    (broken / "a.txt").write_text((folder / "0.txt").read_text())
    (broken / "b.jsonl").write_text('{"text": "fine"}\n{"text": "cut of')
    assert (broken / "a.txt").stat().st_size > 4000, "two portions"
    done = launch(tmp_path / "cache", corpus=broken, output=tmp_path / "out")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "b.jsonl, line 2: broken JSON" in lines[0]
    assert done.returncode != 0 and not (tmp_path / "out").exists()


def test_how_text_is_divided_changes_neither_split_nor_order(folder, documents, tmp_path, monkeypatch):
    whole = tmp_path / "whole.txt"
    names = [str(path) for path in sorted(folder.iterdir())]
    whole.write_text("\n\n".join(survey.documents_of(open_sources(names, text_field="text"))))
    one = open_corpus([str(whole)], text_field="text", validation_share=0.1)
    monkeypatch.setattr(readers, "PORTION", 4000)
    many = open_corpus(names, text_field="text", validation_share=0.1)
    assert len(one.portions) == 1 and len(many.portions) > 4
    assert one.facts == many.facts and many.facts.duplicates == 60
    assert list(one.train()) == list(many.train()) and list(one.validation()) == list(many.validation())
    parts = [text for number in range(len(many.portions)) for text in many.train(number)]
    assert parts == list(one.train())


def test_small_files_are_prepared_together():
    sizes = [0, 3, 4, 5, 100, 1, 1]
    sources = [Source(str(number), iter, size) for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(readers, "PORTION", 10)
        divided = [[source.size for source in portion] for portion in divide(sources)]
    assert divided == [[0, 3, 4], [5], [100], [1, 1]]


def test_one_more_file_leaves_the_others_hashed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TINY_TRANSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(readers, "PORTION", 10)
    names = [str(path) for path in sorted(folder.iterdir())]
    open_corpus(names[:-1], text_field="text", validation_share=0.1)
    hashed, hash_documents = [], survey._hash_documents

    def noted(portion, *rest, **more):
        hashed.append(portion)
        hash_documents(portion, *rest, **more)

    monkeypatch.setattr(survey, "_hash_documents", noted)
    open_corpus(names, text_field="text", validation_share=0.1)
    assert [source.identity.split()[0] for portion in hashed for source in portion] == names[-1:]


def test_several_arrays_read_as_their_concatenation():
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 9, size, dtype=np.uint16) for size in (7, 1, 30, 2, 11)]
    whole, joined = np.concatenate(parts), JoinedTokens(parts)
    assert len(joined) == len(whole)
    for start in range(len(whole) + 2):
        for stop in range(len(whole) + 2):
            assert np.array_equal(joined[start:stop], whole[start:stop])
    assert np.array_equal(joined[:1000], whole) and joined[:1000].dtype == whole.dtype
    one, several = PackedTokens(whole, cls_id=2), PackedTokens(joined, cls_id=2)
    assert np.array_equal(one.document_starts(), several.document_starts())
    for size in (3, 8, 20):
        assert one.num_blocks(size) == several.num_blocks(size)
        order = generator.permutation(one.num_blocks(size))
        assert np.array_equal(one.blocks(order, size), several.blocks(order, size))


def test_a_folder_of_token_files_is_mapped_in_order_and_empty_ones_left_out(documents, tmp_path):
    tokenizer = train_tokenizer(
        lambda: documents, vocab_size=120, lowercase=True, max_length=64, family="encoder", progress=False
    )
    parts = [documents[:40], [], documents[40:41], documents[41:]]
    for number, part in enumerate(parts):
        write_packed(part, tokenizer, tmp_path / "parts" / f"{number:06d}.bin", tmp_path / f"shards{number}")
    write_packed(documents, tokenizer, tmp_path / "whole.bin", tmp_path / "shards")
    one, several = (
        open_packed(tmp_path / name, 120, 2, block_size=8, what="training") for name in ("whole.bin", "parts")
    )
    assert isinstance(one.tokens, np.memmap) and len(several.tokens.parts) == 3
    assert np.array_equal(several.tokens[:], one.tokens)
    with pytest.raises(UserError, match="less than one block of 999999"):
        open_packed(tmp_path / "parts", 120, 2, block_size=999999, what="training")


def test_long_documents_are_tokenised_few_at_a_time(monkeypatch):
    monkeypatch.setattr(packing, "BATCH", 3)
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 10)
    texts = ["a", "b", "c", "d" * 20, "e" * 6, "f" * 6, "g"]
    assert [len(batch) for batch in packing._batches(iter(texts))] == [3, 1, 2, 1]


@pytest.fixture
def data_set(documents, tmp_path, monkeypatch):
    """A folder that `datasets` reads as it reads a data set of the Hub: three files, 100 documents each."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "downloaded")
    path = tmp_path / "reviews"
    path.mkdir()
    for number in range(3):
        part = documents[number * 100 : number * 100 + 100]
        (path / f"part-{number}.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in part))
    return path


def test_a_streamed_data_set_has_a_source_for_each_of_its_files(data_set, documents, tmp_path):
    streamed = open_sources([f"hub-stream:{data_set}"], text_field="text")
    assert [list(source.read()) for source in streamed] == [documents[i : i + 100] for i in range(0, 300, 100)]
    assert list(streamed[1].read()) == documents[100:200], "as often as needed"
    assert len({source.identity for source in streamed}) == 3 and len(divide(streamed)) == 3
    assert not list((tmp_path / "downloaded").rglob("*.arrow")), "nothing was downloaded whole"
    again = open_sources([f"hub-stream:{data_set}"], text_field="text")
    assert [source.identity for source in again] == [source.identity for source in streamed]
    with (data_set / "part-0.jsonl").open("a") as stream:
        stream.write(json.dumps({"id": 1, "text": "One more."}) + "\n")
    changed = open_sources([f"hub-stream:{data_set}"], text_field="text")
    assert {source.identity for source in changed}.isdisjoint(source.identity for source in streamed)


def test_a_downloaded_data_set_is_cut_into_ranges_of_rows(data_set, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS", 120)
    sources = open_sources([f"hub:{data_set}"], text_field="text")
    assert [len(list(source.read())) for source in sources] == [120, 120, 60]
    assert [text for source in sources for text in source.read()] == documents
    assert list((tmp_path / "downloaded").rglob("*.arrow"))


def test_a_run_on_a_stream_is_a_run_on_the_files(data_set, tmp_path):
    runs = {}
    for name, corpus in (("files", data_set), ("stream", f"hub-stream:{data_set}")):
        assert run_cli(lambda name=name, corpus=corpus: main(command(corpus, tmp_path / name, "--max-steps=1"))) == 0
        runs[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert runs["files"] == runs["stream"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"hub-stream:\S*: can't be streamed"),
        ('{"body": "x"}\n', r"no column 'text' \(there is: body\); use --text-field"),
        ('{"text": 7}\n', "column 'text' holds int, not text"),
        ('{"text": "fine"}\n{"text": "cut of', r"hub-stream:"),
    ],
)
def test_bad_streams_are_named(content, words, tmp_path, capsys):
    path = tmp_path / "set"
    if content is not None:
        path.mkdir()
        (path / "a.jsonl").write_text(content)
    assert re.search(words, refused(capsys, command(f"hub-stream:{path}", tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not all(map(find_spec, ("datatrove", "orjson", "spacy"))), reason='needs: pip install -e ".[web]"')
def test_the_datatrove_recipe_leaves_shards_that_pretrain_reads(tmp_path):
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
    kept = sorted(survey.documents_of(open_sources([str(tmp_path / "shards" / "*.jsonl.gz")], text_field="text")))
    assert len(kept) == 30 and set(kept) <= {*texts, near_duplicate}
