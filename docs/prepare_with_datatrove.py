"""Web-sized text to clean shards with datatrove: quality filters, near duplicates dropped, documents dealt out.

    pip install "datatrove[io]" spacy
    python -m docs.prepare_with_datatrove crawl/*.parquet --output shards --tasks 64 --workers 16
    python -m pretrain --corpus "shards/*.jsonl.gz" --output runs/x

Input is whatever `--corpus` reads. The filters are Gopher's (Rae et al. 2021, table A1), near duplicates are found by
MinHash as for FineWeb (Penedo et al. 2024): what `pretrain` drops by itself are exact duplicates only. Begun anew after
a crash, it does only the tasks that are missing. datatrove's SlurmPipelineExecutor takes the same steps to a cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig

from hf_tiny_transformer.common.errors import UserError, run_command
from hf_tiny_transformer.common.files import atomic_write_json
from pretrain.readers import open_sources
from pretrain.survey import documents_of


class Documents(PipelineStep):
    """Reads what `--corpus` reads, and deals the documents out to the tasks."""

    type, name = "📖 - READER", "📄 Corpus"

    def __init__(self, names: list[str], text_field: str):
        super().__init__()
        self.names, self.text_field = names, text_field

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Every `world_size`-th source; with fewer sources than tasks every `world_size`-th document."""
        sources = open_sources(self.names, text_field=self.text_field)
        if len(sources) >= world_size:
            texts = documents_of(sources[rank::world_size])
        else:
            texts = islice(documents_of(sources), rank, None, world_size)
        for number, text in enumerate(texts):
            self.stat_update("documents")
            yield Document(text=text, id=f"{rank}/{number}")


def main() -> None:
    """Five passes, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="+", help="as --corpus of python -m pretrain")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards; OUTPUT.work beside it may go")
    parser.add_argument("--tasks", type=int, default=8, help="as many shards are written")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="tasks that run at the same time")
    arguments = parser.parse_args()
    open_sources(arguments.corpus, text_field=arguments.text_field)  # says now what is wrong with the names

    work = arguments.output.with_name(f"{arguments.output.name}.work")
    _require_same(work / "settings.json", {"corpus": arguments.corpus, "tasks": arguments.tasks})
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash wants one older than 4
    filtered, signatures, buckets, duplicates = (
        str(work / name) for name in ("filtered", "signatures", "buckets", "duplicates")
    )
    passes = {
        "filter": [
            Documents(arguments.corpus, arguments.text_field),
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            JsonlWriter(filtered),
        ],
        "sign": [JsonlReader(filtered), MinhashDedupSignature(signatures, config=config)],
        "compare": [MinhashDedupBuckets(signatures, buckets, config=config)],
        "cluster": [MinhashDedupCluster(buckets, duplicates, config=config)],
        "write": [JsonlReader(filtered), MinhashDedupFilter(duplicates), JsonlWriter(str(arguments.output))],
    }
    tasks = {"compare": config.num_buckets, "cluster": 1}
    for name, steps in passes.items():
        LocalPipelineExecutor(
            steps,
            tasks=tasks.get(name, arguments.tasks),
            workers=arguments.workers,
            logging_dir=str(work / "logs" / name),
        ).run()
        if name == "filter" and not any(Path(filtered).glob("*")):
            raise UserError(f"{filtered}: the filters kept no document; {work / 'logs'} says why, change them here")


def _require_same(path: Path, settings: dict) -> None:
    """A folder holds the shards of one corpus.

    Raises:
        UserError: it was begun with another, or with another number of tasks.
    """
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise UserError(f"{path}: these shards were begun with another corpus or number of tasks; name a new --output")
    atomic_write_json(path, settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
