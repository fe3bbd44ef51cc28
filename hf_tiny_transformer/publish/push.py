"""`python -m hf_tiny_transformer push --model DIR --repo NAME`: model, tokenizer, card and training log to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that this version of huggingface_hub has
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from .cards import CARD_FILE, THIS_DIRECTORY
from .checkpoint_files import TOKENIZER_FILES
from .runs import RunError, UserError
from .verify import require_verified

# What is sent, and nothing else: no predictions.csv, for it holds others' texts, and nothing that happens to lie there.
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json", "*.py")
TOKENIZER = (*TOKENIZER_FILES, "vocab.json", "merges.txt", "chat_template.jinja", "preprocessor_config.json")
RECORDS = (CARD_FILE, "results.json", *(f"training/*.{kind}" for kind in ("json", "jsonl", "yaml", "png")))
COMMIT_MESSAGE = "Model, tokenizer, card and training log"


def add_push_command(commands: argparse._SubParsersAction) -> None:
    """Registers the sub-command."""
    command = commands.add_parser(
        "push", help="verify a model directory, then send it to the Hub (without --yes: show what)", allow_abbrev=False
    )
    command.add_argument("--model", type=Path, required=True, help="model directory, from pretrain or finetune")
    command.add_argument("--repo", required=True, metavar="NAME", help="on the Hub: NAME or OWNER/NAME")
    command.add_argument("--private", action="store_true", help="only for its owner to see")
    command.add_argument("--yes", action="store_true", help="send it; without this nothing is sent")
    command.set_defaults(run=push)


def push(given: argparse.Namespace) -> None:
    """Verifies, lists what would be sent, and with --yes sends it as one commit.

    Raises:
        UserError: no model directory, no such name of a repository, no token, or no way to the Hub.
        RunError: the directory is not ready to be published, or the Hub refuses.
    """
    try:
        validate_repo_id(given.repo)
    except HFValidationError as error:
        raise UserError(f"--repo {given.repo}: {error}") from error
    if given.yes:
        _require_connection()  # before the checks, which take a while
    require_verified(given.model)
    files = files_to_send(given.model)
    for name, file in files.items():
        print(f"{_size(file.stat().st_size):>12}  {name}")
    total = f"{len(files)} files, {_size(sum(file.stat().st_size for file in files.values()))}"
    where = f"{constants.ENDPOINT}/{given.repo}" + (" (private)" if given.private else "")
    if not given.yes:
        print(f"{total}, to {where}: nothing is sent without --yes")
        return
    print(f"sent: {total}, {send(files, given.repo, private=given.private)}")


def files_to_send(directory: Path) -> dict[str, Path]:
    """Name in the repository -> file, sorted."""
    found = {
        path for pattern in (*MODEL_FILES, *TOKENIZER, *RECORDS) for path in directory.glob(pattern) if path.is_file()
    }
    return {path.relative_to(directory).as_posix(): path for path in sorted(found)}


def send(files: dict[str, Path], repo: str, *, private: bool) -> str:
    """Creates the repository if it is not there, and makes one commit of the files; returns the commit's address.

    Raises:
        UserError: the Hub is out of reach, or does not know the token.
        RunError: the Hub refuses; or --private, and the repository is there and public.
    """
    disable_progress_bars()
    api = HfApi()
    try:
        full_name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(full_name).private:
            raise RunError(f"--private: {full_name} is there and public; make it private on the Hub, or name another")
        operations = [CommitOperationAdd(name, _content(name, file, full_name)) for name, file in files.items()]
        return api.create_commit(
            full_name, operations, commit_message="Model, tokenizer, card and training log"
        ).commit_url
    except HfHubHTTPError as error:
        raise _refusal(error, repo) from error
    except ValueError as error:  # the Hub found fault with the card's metadata
        raise RunError(f"--repo {repo}: the Hub refuses the model ({error}); mend {CARD_FILE}") from error
    except (HTTPError, OSError) as error:
        raise UserError(f"{constants.ENDPOINT}: cannot be reached ({error}); check the network") from error
    except RuntimeError as error:  # huggingface_hub's, around whatever stopped a large file
        raise RunError(f"{error} ({error.__cause__ or 'no reason given'}); give the command again") from error


def _content(name: str, file: Path, repo: str) -> Path | bytes:
    """The file itself; in the card, whose code opens the directory that it lies in, the model's name on the Hub."""
    if name != CARD_FILE:
        return file
    return file.read_text(encoding="utf-8").replace(THIS_DIRECTORY, f'model_id = "{repo}"').encode()


def _require_connection() -> None:
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: nothing can be sent; unset it")
    if get_token() is None:
        raise UserError("no token of the Hub is here; log in with `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise _refusal(error, None) from error
    except (HTTPError, OSError) as error:
        raise UserError(f"{constants.ENDPOINT}: cannot be reached ({error}); check the network") from error


def _refusal(error: HfHubHTTPError, repo: str | None) -> RunError:
    status = error.response.status_code
    if status == 401:
        return UserError("the Hub does not know this token; log in again with `hf auth login`, or set HF_TOKEN anew")
    name = f"--repo {repo}: " if repo else ""
    if status == 403:
        return UserError(f"{name}this token may not write there; use one with write access, or another name")
    return RunError(f"{name}the Hub answered with {status} ({error.server_message or error}); try again later")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
