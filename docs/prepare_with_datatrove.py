"""Turn text from the web into clean shards with datatrove: filter by quality, and drop near duplicates.

    pip install "datatrove[io]" spacy
    python -m docs.prepare_with_datatrove crawl/*.parquet --output shards --tasks 64 --workers 16
    python -m pretrain --corpus "shards/*.jsonl.gz" --output runs/x

The input is whatever `--corpus` reads. The filters are Gopher's (Rae et al. 2021, table A1). MinHash finds near
duplicates, as for FineWeb (Penedo et al. 2024); `pretrain` itself drops exact duplicates only. After a crash, the
script does only the missing tasks. datatrove's SlurmPipelineExecutor runs the same steps on a cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

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
from pretrain.data.documents import documents_of
from pretrain.data.sources import open_sources


class Documents(PipelineStep):
    """Read what `--corpus` reads, and divide the documents among the tasks.

    Args:
        names: Sources, as for `--corpus`.
        text_field: The column or field that holds the text.
    """

    type, name = "📖 - READER", "📄 Corpus"

    def __init__(self, names: list[str], text_field: str):
        super().__init__()
        self.names, self.text_field = names, text_field

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield every `world_size`-th source; with fewer sources than tasks, every `world_size`-th document."""
        sources = open_sources(self.names, text_field=self.text_field)
        if len(sources) >= world_size:
            texts = documents_of(sources[rank::world_size])
        else:
            texts = islice(documents_of(sources), rank, None, world_size)
        for number, text in enumerate(texts):
            self.stat_update("documents")
            yield Document(text=text, id=f"{rank}/{number}")


def main() -> None:
    """Run the five passes, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="+", help="sources, as for --corpus of pretrain")
    parser.add_argument("--text-field", default="text", help="column or field that holds the text (default: text)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards; OUTPUT.work may be deleted")
    parser.add_argument("--tasks", type=int, default=8, help="number of tasks, and of shards (default: 8)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="tasks that run in parallel (default: all cores)"
    )
    arguments = parser.parse_args()
    open_sources(arguments.corpus, text_field=arguments.text_field)  # fail early if a name is wrong

    work = arguments.output.with_name(f"{arguments.output.name}.work")
    _require_same(work / "settings.json", {"corpus": arguments.corpus, "tasks": arguments.tasks})
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash requires a version below 4
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
            raise UserError(
                f"{filtered}: the filters kept no document; see {work / 'logs'} and change them in this script"
            )


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    """Require that a folder holds the shards of one corpus only.

    Args:
        path: The file with the settings of these shards; written if it is missing.
        settings: The settings of this call.

    Raises:
        UserError: The file has other settings.
    """
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise UserError(f"{path}: these shards come from another corpus or number of tasks; choose a new --output")
    atomic_write_json(path, settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
