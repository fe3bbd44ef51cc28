"""Protects `push`: it uploads a verified model and its records as one commit, and nothing else."""

import pytest
import torch
from cards import edit
from commands import fails, run
from hub_stand_in import READ_TOKEN, TOKEN, running_hub
from huggingface_hub import constants

from hf_tiny_transformer.common.errors import RunError, UserError
from hf_tiny_transformer.publish.push import files_to_push, upload


@pytest.fixture
def hub(monkeypatch):
    """A stand-in, which huggingface_hub in this process takes for the Hub."""
    with running_hub() as hub:
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_model_and_its_records_are_uploaded_and_nothing_else(published, hub, opened, capsys):
    assert run("push", "--model", published, "--repo", "mine", "--private", "--yes") == 0
    assert list(hub.files) == ["someone/mine"] and hub.private == {"someone/mine"} and len(hub.commits) == 1
    sent = hub.files["someone/mine"]
    here = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert set(sent) == {name for name in here if not name.startswith("checkpoints/")} - {"predictions.csv"}
    assert all(sent[name] == (published / name).read_bytes() for name in sent if name != "README.md")
    assert 'model_id = "someone/mine"' in sent["README.md"].decode()
    assert capsys.readouterr().out.splitlines()[-1].endswith(hub.url + "/someone/mine/commit/" + "0" * 40)


def test_without_yes_push_lists_what_it_would_send(published, hub, opened, capsys):
    assert run("push", "--model", published, "--repo", "mine") == 0
    printed = capsys.readouterr().out
    assert "kB  training/metrics.jsonl" in printed and "results.json" in printed and "predictions.csv" not in printed
    assert f"to {hub.url}/mine; nothing is uploaded without --yes" in printed and not hub.requests


def test_a_second_push_uploads_what_changed(published, hub, monkeypatch):
    files = files_to_push(published)
    upload(files, "mine", private=False)
    upload(files, "mine", private=False)
    assert len(hub.commits) == 1, "nothing had changed"
    hub.files["someone/mine"]["config.json"] = b"{}"
    upload(files, "mine", private=False)
    assert hub.commits[1]["files"] == ["config.json"]
    with pytest.raises(RunError, match="exists and is public"):
        upload(files, "mine", private=True)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(UserError, match="no write access"):
        upload(files, "other", private=False)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [("none", "hf auth login"), ("wrong", "does not know this token"), ("gone", "cannot be reached")],
)
def test_push_stops_without_a_token_with_a_wrong_one_and_without_the_hub(trouble, told, hub, monkeypatch, capsys):
    """Before it checks anything."""
    if trouble == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(
            "hf_tiny_transformer.publish.push.get_token", {"none": lambda: None, "wrong": lambda: "x"}[trouble]
        )
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert told in fails(capsys, "push", "--model", "no-such-place", "--repo", "mine", "--yes") and not hub.files


def test_the_hubs_word_on_the_card_is_passed_on(copy, hub):
    edit(copy / "README.md", "license: mit", "license: no-such")
    with pytest.raises(RunError, match='"license" must be one of'):
        upload(files_to_push(copy), "mine", private=False)
    assert not hub.commits


def test_nothing_is_uploaded_that_is_not_ready(copy, monkeypatch, opened, capsys):
    torch.save({}, copy / "state.pt")
    monkeypatch.setattr("hf_tiny_transformer.publish.push.upload", lambda *_, **__: pytest.fail("uploaded"))
    assert run("push", "--model", copy, "--repo", "mine") == 1
    captured = capsys.readouterr()
    assert "no pickle: FAILED: 1 files (first: state.pt)" in captured.out and "checks failed: 1;" in captured.err


def test_bad_arguments_are_one_line(capsys):
    assert "no such directory" in fails(capsys, "push", "--model", "no-such-place", "--repo", "x")
    assert "--repo a b" in fails(capsys, "push", "--model", "no-such-place", "--repo", "a b")
    assert "HF_HUB_OFFLINE" in fails(capsys, "push", "--model", "no-such-place", "--repo", "x", "--yes")
