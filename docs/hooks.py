"""Hooks of mkdocs: pages generated from the code, links to repository files, formulas without JavaScript."""

from __future__ import annotations

import html
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hf_tiny_transformer.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("hf_tiny_transformer", "pretrain", "finetune")
COPIED = {"CONTRIBUTING.md": "index.md", "CHANGELOG.md": "changelog.md", "benchmarks/LOG.md": "log.md"}

LATER_IN_SEARCH = "---\nsearch:\n  boost: 0.2\n---\n\n"  # of generated pages, which would hide the guides

log = logging.getLogger("mkdocs.plugins.hooks")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API reference into the navigation."""
    reference = next(section["Reference"] for section in config.nav or [] if "Reference" in section)
    api = next(entry for entry in reference if "API" in entry)
    api["API"] = [{name: f"api/{name}.md"} for name in _documented()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages: command line, API reference, and the repository files that the site shows."""
    pages = {"cli.md": _command_line()}
    pages |= {f"api/{name}.md": _api(name, directory) for name, directory in _documented().items()}
    for source, target in COPIED.items():
        pages[f"contributing/{target}"] = (ROOT / source).read_text(encoding="utf-8")
    for path, content in pages.items():
        files.append(File.generated(config, path, content=LATER_IN_SEARCH + content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to repository files outside docs/ by their text; the site does not contain these files."""
    depth = page.file.src_uri.count("/") + 1
    if page.file.src_uri.startswith("contributing/") and page.file.src_uri != "contributing/style.md":
        markdown = re.sub(r"\]\((?:\.\./)?docs/", "](../", markdown)
    return re.sub(rf"\[([^\]\[]+)\]\((?:\.\./){{{depth}}}[^)]*\)", r"\1", markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert formulas to MathML, which browsers show without a script."""

    def formula(match: re.Match[str]) -> str:
        source = html.unescape(match[1]).strip()
        return convert(source[2:-2], display="block" if source.startswith(r"\[") else "inline")

    return re.sub(r'<(?:div|span) class="arithmatex">(.*?)</(?:div|span)>', formula, content, flags=re.DOTALL)


def _documented() -> dict[str, Path]:
    """Return the packages that get a page, by dotted name."""
    found = {}
    for package in PACKAGES:
        for init in sorted((ROOT / package).rglob("__init__.py"), key=lambda path: path.parent):
            found[".".join(init.parent.relative_to(ROOT).parts)] = init.parent
    return found


def _api(name: str, directory: Path) -> str:
    """Return the page of one package: its own docstring, then every public module in it."""
    modules = [f"{name}.{path.stem}" for path in sorted(directory.glob("*.py")) if not path.stem.startswith("_")]
    options = "    options: {members: false, show_root_heading: false, show_root_toc_entry: false}"
    return "\n\n".join([f"# {name}", f"::: {name}\n{options}", *(f"::: {module}" for module in modules)]) + "\n"


def _command_line() -> str:
    """Return the page with the help of every command."""
    lines = [
        "# Command line",
        "`hf-tiny-transformer COMMAND` and `python -m hf_tiny_transformer COMMAND` are equal. "
        "So are hyphens and underscores in flags. This page shows `--help` of every command.",
    ]
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    for command in COMMANDS:
        call: list[Any] = [sys.executable, "-m", "hf_tiny_transformer", command, "--help"]
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            log.warning(
                "hf-tiny-transformer %s --help: %s", command, (done.stderr.strip() or "failed").splitlines()[-1]
            )
        lines.append(f"## {command}\n\n```text\n{done.stdout.strip()}\n```")
    return "\n\n".join(lines) + "\n"
