"""Keeps tests off the network and off the user's caches, and gives them a small real-looking corpus."""

import os
import random
import shutil
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


BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
LOOKS = [(1280, "light"), (390, "dark")]


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium; HF_TINY_TRANSFORMER_BROWSER names another."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = os.environ.get("HF_TINY_TRANSFORMER_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=LOOKS, ids=["desktop-light", "phone-dark"])
def look(request, browser):
    """A desktop and a phone; an error of the page, or a request to a network, fails the test."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else problems.append(sent.url))
    yield page
    context.close()
    assert problems == []


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that exists once foreign code ran."""
    import transformers

    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # an answer to a question is not the flag
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "it-ran"


@pytest.fixture
def attack(marker, tmp_path):
    """Makes model directories whose every file names a payload: `attack(kind, form, model_type, fields)`."""
    from attack import make_attack

    return lambda *arguments, **options: make_attack(tmp_path, marker, *arguments, **options)
