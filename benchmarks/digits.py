"""The Encoder learns to read handwritten digits, on transformers' Trainer: `python -m benchmarks.digits --output DIR`.

1,797 pictures of 8 x 8 pixels that scikit-learn brings along, cut once and for all: 1,077 to learn from, 360 to choose
by, 360 held out and looked at once, at the end.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import Dataset, default_collate
from transformers import Trainer, TrainingArguments, ViTImageProcessorPil, set_seed

from hf_tiny_transformer import TinyTransformerEncoderForImageClassification, TinyTransformerEncoderImageConfig
from hf_tiny_transformer.attend.figure import draw_over_image
from hf_tiny_transformer.attend.read import read_image_attention
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.files import atomic_directory, atomic_write_json, require_free_output

SPLIT_SEED = 0
EPOCHS = 60
SHAPE = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,
}
TURN, SCALE, SHIFT = math.radians(12), 0.1, 0.8 / 4  # how far `moved` goes; a picture is 2 wide there


class Digits(Dataset):
    """Pictures (8, 8) from 0 to 255 with their digits."""

    def __init__(self, pictures: np.ndarray, digits: np.ndarray, processor: ViTImageProcessorPil):
        self.pixels = processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")["pixel_values"]
        self.digits = torch.from_numpy(digits)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[place], "labels": self.digits[place]}


def moved(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of pictures as other hands would have written them: each turned by up to 12 degrees, up to a tenth larger
    or smaller, and up to 0.8 pixels aside. Outside of a picture it is black (-1)."""
    batch = default_collate(rows)
    pixels = batch["pixel_values"]
    angle, size, *aside = (2 * torch.rand(4, len(pixels)) - 1) * torch.tensor([[TURN], [SCALE], [SHIFT], [SHIFT]])
    cos, sin = angle.cos() * (1 + size), angle.sin() * (1 + size)
    maps = torch.stack((torch.stack((cos, -sin, aside[0]), -1), torch.stack((sin, cos, aside[1]), -1)), dim=1)
    grid = affine_grid(maps, pixels.shape, align_corners=False)
    return batch | {"pixel_values": grid_sample(pixels + 1, grid, align_corners=False) - 1}


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> pictures (N, 8, 8) from 0 to 255, and digits (N,); every digit alike often in each."""
    data = load_digits()
    pictures, digits = (data.images * 255 / 16).round().astype(np.uint8), data.target
    rest, held_out = train_test_split(np.arange(len(digits)), test_size=360, random_state=SPLIT_SEED, stratify=digits)
    train, validation = train_test_split(rest, test_size=360, random_state=SPLIT_SEED, stratify=digits[rest])
    chosen = {"train": train, "validation": validation, "held out": held_out}
    return {name: (pictures[places], digits[places]) for name, places in chosen.items()}


def image_processor() -> ViTImageProcessorPil:
    """From 0..255 to -1..1, and three channels, which is what transformers' pipelines hand to any processor."""
    mean = [0.5, 0.5, 0.5]
    return ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=mean, image_std=mean, do_convert_rgb=True)


def train(output: Path, *, seed: int = 0, epochs: int = EPOCHS) -> dict[str, float]:
    """Trains, measures, and leaves a model directory with results.json and attention.png; returns the results.

    Raises:
        UserError: `output` already holds something.
    """
    require_free_output(output)
    set_seed(seed)
    processor = image_processor()
    sets = {name: Digits(*pair, processor) for name, pair in splits().items()}
    config = TinyTransformerEncoderImageConfig(
        **SHAPE, num_labels=10, id2label={i: str(i) for i in range(10)}, attn_implementation="eager"
    )
    model = TinyTransformerEncoderForImageClassification(config)
    start = time.perf_counter()
    with atomic_directory(output) as staging:
        arguments = TrainingArguments(
            output_dir=str(staging),
            per_device_train_batch_size=64,
            per_device_eval_batch_size=360,
            num_train_epochs=epochs,
            learning_rate=3e-3,
            weight_decay=0.05,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=seed,
        )
        trainer = Trainer(model, arguments, data_collator=moved, train_dataset=sets["train"], compute_metrics=_accuracy)
        trainer.train()
        trainer.data_collator = default_collate
        results = {"seed": seed, "epochs": epochs, "seconds": round(time.perf_counter() - start, 1)}
        for name in ("validation", "held out"):
            results[f"{name} accuracy"] = round(trainer.evaluate(sets[name])["eval_accuracy"], 4)
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        picture = Image.fromarray(splits()["held out"][0][0])
        picture.save(staging / "example.png")
        attention = read_image_attention(model.eval(), processor, picture)
        draw_over_image(attention, picture).savefig(staging / "attention.png", dpi=100)
        atomic_write_json(staging / "results.json", results)
    return results


def _accuracy(predicted: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    logits, labels = predicted
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="new model directory")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, value in train(given.output, seed=given.seed).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(run_command(main))
