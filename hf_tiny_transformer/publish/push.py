"""The command `push`: upload model, tokenizer, card and training log to the Hub."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from ..common.arguments import CommandParser
from ..common.checkpoints import TOKENIZER_FILES
from ..common.errors import RunError, UserError, plural
from .card import CARD_FILE, THIS_DIRECTORY, read_facts
from .verify import require_verified

# Nothing else is uploaded: other files may hold texts of others.
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json", "*.py")
TOKENIZER = (*TOKENIZER_FILES, "vocab.json", "merges.txt", "chat_template.jinja", "preprocessor_config.json")
RECORDS = (CARD_FILE, *(f"training/*.{kind}" for kind in ("json", "jsonl", "yaml", "png")))
COMMIT_MESSAGE = "Model, tokenizer, card and training log"


def main(argv: list[str]) -> None:
    """Run the command: verify, list the files, and with --yes upload them as one commit."""
    parser = CommandParser("hf-tiny-transformer push", "Verify a model directory, then upload it to the Hub.")
    parser.add_argument("--model", type=Path, required=True, help="Model directory.")
    repo = "Repository on the Hub, NAME or OWNER/NAME. It is created if it does not exist."
    parser.add_argument("--repo", type=str, required=True, help=repo)
    parser.add_argument("--private", action="store_true", help="Whether a new repository is private.")
    parser.add_argument("--yes", action="store_true", help="Whether to upload. Without it, the files are only listed.")
    settings = parser.parse(argv)
    try:
        validate_repo_id(settings.repo)
    except HFValidationError as error:
        raise UserError(f"--repo {settings.repo}: {error}") from None
    if settings.yes:
        with _hub_errors():  # before the checks, which take a while
            HfApi().whoami()
    require_verified(settings.model)
    files = files_to_push(settings.model)
    for name, file in files.items():
        print(f"{_size([file]):>12}  {name}")
    total = f"{plural(len(files), 'file')}, {_size(files.values())}"
    if settings.yes:
        print(f"uploaded: {total}, {upload(files, settings.repo, private=settings.private)}")
        return
    where = f"{constants.ENDPOINT}/{settings.repo}" + (" (private)" if settings.private else "")
    print(f"{total}, to {where}; nothing is uploaded without --yes")


def files_to_push(directory: Path) -> dict[str, Path]:
    """Return the files to upload by their names in the repository, sorted."""
    _, figures = read_facts(directory)
    patterns = (*MODEL_FILES, *TOKENIZER, *RECORDS, *{figure.file for figure in figures})
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return {path.relative_to(directory).as_posix(): path for path in sorted(found)}


def upload(files: dict[str, Path], repo: str, *, private: bool) -> str:
    """Create the repository if necessary, commit the files to it, and return the URL of the commit.

    Raises:
        RunError: The Hub rejects the token or the files, or the repository is public although `private` is set.
    """
    disable_progress_bars()
    api = HfApi()
    with _hub_errors(repo):
        full_name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(full_name).private:
            raise RunError(f"--private: {full_name} exists and is public; make it private on the Hub, or name another")
        contents: dict[str, Path | bytes] = dict(files)
        card = files[CARD_FILE].read_text(encoding="utf-8")
        contents[CARD_FILE] = card.replace(THIS_DIRECTORY, f'model_id = "{full_name}"').encode()
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        return api.create_commit(full_name, operations, commit_message=COMMIT_MESSAGE).commit_url


@contextmanager
def _hub_errors(repo: str = "") -> Iterator[None]:
    """Turn the exceptions of huggingface_hub into one-line errors."""
    name = f"--repo {repo}: " if repo else ""
    try:
        yield
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, error.server_message or error
        problem = f"{name}the Hub answered {status} ({reason})"
        if status in (401, 403):
            raise UserError(f"{problem}; log in with `hf auth login`, or correct HF_TOKEN") from None
        raise RunError(f"{problem}; try again later") from None
    except (HTTPError, OSError) as error:  # OSError also without a token
        raise UserError(f"{constants.ENDPOINT}: cannot be used ({error}); check network and token") from None
    except (ValueError, RuntimeError) as error:  # of the card's metadata, or around the reason why a file was not sent
        problem = f"{name}the Hub rejects the model ({error.__cause__ or error})"
        raise RunError(f"{problem}; correct {CARD_FILE}, or try again") from None


def _size(files: Collection[Path]) -> str:
    count = sum(file.stat().st_size for file in files)
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
