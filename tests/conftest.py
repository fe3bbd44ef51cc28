"""Keeps tests off the network and off the user's caches, and gives them a small real-looking corpus."""

import os
import random
import warnings

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Prepared corpora of the tests, subprocesses included, go to a folder of their own."""
    os.environ["HF_TINY_TRANSFORMER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seed():
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def _flex_uncompiled():
    """transformers compiles flex attention at the first call, half a minute a shape: here torch runs it as written."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


SUBJECTS = [
    "the old film",
    "a young director",
    "this quiet story",
    "every single actor",
    "my favourite scene",
    "the long ending",
]
VERBS = ["surprises", "bores", "delights", "annoys", "moves", "puzzles"]
OBJECTS = ["the audience", "its critics", "an honest viewer", "all of my friends", "nobody at all", "the whole family"]
REASONS = ["because the music is lovely", "although the script is weak", "while the camera wanders", "and that is rare"]


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of one to six sentences, all different."""
    generator = random.Random(seed)

    def sentence() -> str:
        words = (generator.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, REASONS))
        return " ".join(words).capitalize() + "."

    return [f"Review {i}. " + " ".join(sentence() for _ in range(generator.randint(1, 6))) for i in range(count)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """300 short documents."""
    return make_documents(300)


@pytest.fixture(scope="session")
def corpus_file(documents, tmp_path_factory):
    """The same documents as a .txt file, an empty line after each."""
    path = tmp_path_factory.mktemp("corpus") / "reviews.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path
