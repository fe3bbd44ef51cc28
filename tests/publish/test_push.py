"""Protects `push`: it uploads a verified model and its records as one commit, and nothing else."""

from unittest.mock import Mock, create_autospec

import pytest
import torch
from commands import fails, run
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from hf_tiny_transformer.publish import push

URL = "https://huggingface.co/someone/mine/commit/0"


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the client of the Hub, with its signatures."""
    api = create_autospec(HfApi, instance=True)
    api.create_repo.return_value = Mock(repo_id="someone/mine")
    api.model_info.return_value = Mock(private=True)
    api.create_commit.return_value = Mock(commit_url=URL)
    monkeypatch.setattr(push, "HfApi", lambda: api)
    return api


def test_a_model_and_its_records_are_uploaded_and_nothing_else(published, hub, opened, capsys):
    assert run("push", "--model", published, "--repo", "mine", "--private", "--yes") == 0
    hub.create_repo.assert_called_once_with("mine", private=True, exist_ok=True)
    repo, operations = hub.create_commit.call_args.args
    sent = {operation.path_in_repo: operation.path_or_fileobj for operation in operations}
    here = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert set(sent) == {name for name in here if not name.startswith("checkpoints/")} - {"predictions.csv"}
    assert b'model_id = "someone/mine"' in sent.pop("README.md")
    assert repo == "someone/mine" and all(file == str(published / name) for name, file in sent.items())
    assert capsys.readouterr().out.splitlines()[-1].endswith(URL)


def test_without_yes_push_lists_what_it_would_send(published, hub, opened, capsys):
    assert run("push", "--model", published, "--repo", "mine") == 0
    printed = capsys.readouterr().out
    assert "kB  training/metrics.jsonl" in printed and "results.json" in printed and "predictions.csv" not in printed
    assert f"to {constants.ENDPOINT}/mine; nothing is uploaded without --yes" in printed and not hub.mock_calls


def answer(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("failed", response=Mock(status_code=status, headers={}), server_message="a reason")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (LocalTokenNotFoundError("no token"), 2, "cannot be used (no token); check network and token"),
        (HTTPError("refused"), 2, "cannot be used (refused)"),
        (answer(401), 2, "answered 401 (a reason); log in with `hf auth login`"),
        (answer(403), 2, "answered 403 (a reason); log in"),
        (answer(500), 1, "answered 500 (a reason); try again"),
        (ValueError('"license" must be one of ...'), 1, 'rejects the model ("license" must be one of'),
    ],
)
def test_every_error_of_the_hub_is_one_line(error, status, told, published, hub, opened, capsys):
    for method in (hub.create_commit, hub.whoami):  # the second before the checks, which take a while
        method.side_effect = error
        place = published if method is hub.create_commit else "no-such-place"
        assert told in fails(capsys, "push", "--model", place, "--repo", "mine", "--yes", status=status)


def test_nothing_is_published_by_private(published, hub, opened, capsys):
    hub.model_info.return_value = Mock(private=False)
    flags = ["--repo", "mine", "--private", "--yes"]
    assert "someone/mine exists and is public" in fails(capsys, "push", "--model", published, *flags, status=1)
    hub.create_commit.assert_not_called()


def test_nothing_is_uploaded_that_is_not_ready(copy, hub, opened, capsys):
    torch.save({}, copy / "state.pt")
    assert run("push", "--model", copy, "--repo", "mine", "--yes") == 1
    captured = capsys.readouterr()
    assert "no pickle: FAILED: 1 file (first: state.pt)" in captured.out and "checks failed: 1;" in captured.err
    hub.create_repo.assert_not_called()


def test_bad_arguments_are_one_line(capsys):
    assert "no such directory" in fails(capsys, "push", "--model", "no-such-place", "--repo", "x")
    assert "--repo a b" in fails(capsys, "push", "--model", "no-such-place", "--repo", "a b")
