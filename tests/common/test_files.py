"""Protects writes that are complete or absent, the refusal to overwrite, and readable errors of JSON files."""

import json
import math
import os
import stat
import subprocess
import sys

import pytest

from hf_tiny_transformer.common.errors import DivergedError, UserError
from hf_tiny_transformer.common.files import (
    atomic_directory,
    atomic_file,
    atomic_write_json,
    atomic_write_text,
    cache_entry,
    damage,
    is_intact,
    only_process,
    read_json,
    require_free_output,
    require_space,
    require_writable,
    write_sums,
)


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "model"
    with pytest.raises(RuntimeError), atomic_directory(target) as staging:
        (staging / "file").write_text("first")
        raise RuntimeError
    assert not list(target.parent.iterdir())
    with atomic_directory(target) as staging:
        (staging / "file").write_text("second")
        assert not target.exists()
    assert (target / "file").read_text() == "second"
    with pytest.raises(OSError, match="not empty"), atomic_directory(target):  # nothing is replaced
        pass
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "file").stat().st_mode) == 0o644


def test_a_file_keeps_its_old_content_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_json(path, {"name": "ü"})
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "half \ud83d")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "ü"} and path.read_text().endswith("}\n")
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        ('{"a": 1,\n}', r"line [12]: broken JSON"),
        ("[1]", "is not a JSON object"),
        ("[" * 100_000, "cannot be read"),
        ("é".encode("latin1"), "cannot be read"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(content, problem, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=problem) as caught:
        read_json(path, "save it again")
    assert str(caught.value).endswith("save it again") and "\n" not in str(caught.value)


def test_existing_output_is_never_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    for free in ("new", "empty", "deep/new"):
        assert require_free_output(tmp_path / free) == tmp_path / free
    (tmp_path / "empty" / "mine").touch()
    for path, problem in (
        ("empty", r"is not empty \(mine"),
        ("empty/mine", "is a file"),
        ("empty/mine/x", "is a file"),
    ):
        with pytest.raises(UserError, match=problem):
            require_free_output(tmp_path / path)


def test_a_cache_entry_depends_on_every_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TINY_TRANSFORMER_CACHE", str(tmp_path))
    entries = {cache_entry("kind", settings) for settings in ({"a": 1}, {"a": 2}, {"b": 1})}
    assert len(entries) == 3 and all(entry.parent == tmp_path / "kind" for entry in entries)
    assert cache_entry("kind", {"a": 1, "b": 2}) == cache_entry("kind", {"b": 2, "a": 1})


@pytest.fixture
def directory(tmp_path):
    with atomic_directory(tmp_path / "cached") as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "tokens.bin").write_bytes(bytes(range(256)))
        atomic_write_json(staging / "facts.json", {"tokens": 256})
    return tmp_path / "cached"


def test_every_flipped_bit_and_every_shortened_or_missing_file_is_found(directory, capsys):
    names = ["deep/tokens.bin", "facts.json", "SHA256SUMS"]
    assert damage(directory) is None
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=directory, check=True)
    for name in names:
        whole = (directory / name).read_bytes()
        broken = [
            whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :] for place in range(7) for bit in (1, 64)
        ]
        for content in [*broken, whole[:-1], b""] if name != "SHA256SUMS" else broken:
            (directory / name).write_bytes(content)
            assert damage(directory), (name, content)
        (directory / name).unlink()
        assert name in damage(directory)
        (directory / name).write_bytes(whole)
    assert is_intact(directory)
    (directory / names[0]).write_bytes(b"")
    assert not is_intact(directory) and not directory.exists(), "it is made again"
    assert "tokens.bin is damaged" in capsys.readouterr().err


def test_a_json_object_has_a_checksum_of_its_fields(tmp_path):
    path = tmp_path / "run.json"
    atomic_write_json(path, {"seed": 1, "name": "ü"}, checksum=True)
    assert read_json(path, "", checksum=True) == {"seed": 1, "name": "ü"}
    path.write_text(path.read_text().replace("1", "3", 1))
    for content in (path.read_text(), '{"seed": 1}', "{}"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"checksum differs|no checksum"):
            read_json(path, "", checksum=True)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_json_file_has_a_number_that_is_not_finite(number, tmp_path):
    with pytest.raises(DivergedError, match="/seeds/1/score"):
        atomic_write_json(tmp_path / "a.json", {"seeds": [{"score": 1.0}, {"score": number}]})
    assert not list(tmp_path.iterdir())


FULL = [
    OSError(28, "No space left on device"),
    OSError(30, "Read-only file system"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_one_line_with_path_and_free_space(error, tmp_path):
    for write in (atomic_file, atomic_directory):
        with (
            pytest.raises(UserError, match=r"model: cannot be written \(.*MB free\).*--resume"),
            write(tmp_path / "model"),
        ):
            raise error
    with pytest.raises(ValueError, match="a bug"), atomic_file(tmp_path / "model"):
        raise ValueError("a bug")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"need 1,000,000,000,000 MB, but [\d,]+ MB are free"):
        require_space(tmp_path / "new", 1e18, "checkpoints")
    require_space(tmp_path / "new", 1, "checkpoints")
    for problem, words in ((PermissionError(13, "x"), "no permission"), (FULL[1], "Read-only.*MB free")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _, problem=problem: (_ for _ in ()).throw(problem))
            with pytest.raises(UserError, match=f"--output .*{words}"):
                require_writable("--output", tmp_path / "new")
    require_writable("--output", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_symbolic_link_stays_and_its_target_is_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with atomic_directory(tmp_path / "link") as staging:
        (staging / "file").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "file").is_file()


HOLD = """
import sys, time
from pathlib import Path
from hf_tiny_transformer.common.files import atomic_directory, only_process
with only_process(Path(sys.argv[1]), "--output"), atomic_directory(sys.argv[1]) as staging:
    print(staging, flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_by_process_id_until_the_first_is_dead(tmp_path, capsys):
    """What a killed process left is removed."""
    output = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    staging = other.stdout.readline().strip()
    with (
        pytest.raises(UserError, match=f"--output {output}: process {other.pid} is writing"),
        only_process(output, "--output"),
    ):
        pass
    other.kill()
    other.wait()
    assert os.path.isdir(staging)
    with only_process(output, "--output"):
        assert not list(tmp_path.iterdir())


def test_sums_leave_out_what_changes(tmp_path):
    for name in ("a.json", "README.md", "checkpoints/step-1/a.pt", ".model-x.partial/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_sums(tmp_path, leave_out=("checkpoints",))
    assert [line.split()[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()] == ["a.json"]
