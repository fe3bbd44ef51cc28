"""Train the Encoder on handwritten digits with transformers' Trainer: `python -m benchmarks.digits --output DIR`.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn contains, with a fixed split: 1,077 for training, 360
for model selection, 360 held out and read once, at the end.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
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

from .command import parse

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
TURN, SCALE, SHIFT = math.radians(12), 0.1, 0.8 / 4  # the limits of `augment`, in whose units an image is 2 wide


@dataclass(frozen=True)
class DigitsSettings:
    """What to train.

    Args:
        output: New model directory.
        seed: Seed of the initial weights, the order of the images and their augmentation.
    """

    output: Path
    seed: int = 0


class Digits(Dataset):
    """Images (8, 8) from 0 to 255 with their digits."""

    def __init__(self, images: np.ndarray, digits: np.ndarray, processor: ViTImageProcessorPil):
        self.pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
        self.digits = torch.from_numpy(digits)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.digits[index]}


def augment(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rotate each image by up to 12 degrees, scale it by up to a tenth and shift it by up to 0.8 pixels.

    Pixels from outside an image are black (-1).
    """
    batch = default_collate(rows)
    pixels = batch["pixel_values"]
    angle, size, *shift = (2 * torch.rand(4, len(pixels)) - 1) * torch.tensor([[TURN], [SCALE], [SHIFT], [SHIFT]])
    cos, sin = angle.cos() * (1 + size), angle.sin() * (1 + size)
    maps = torch.stack((torch.stack((cos, -sin, shift[0]), -1), torch.stack((sin, cos, shift[1]), -1)), dim=1)
    grid = affine_grid(maps, pixels.shape, align_corners=False)
    return batch | {"pixel_values": grid_sample(pixels + 1, grid, align_corners=False) - 1}


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the images (N, 8, 8) from 0 to 255 and the digits (N,) of each split; splits are stratified."""
    data = load_digits()
    images, digits = (data.images * 255 / 16).round().astype(np.uint8), data.target
    rest, held_out = train_test_split(np.arange(len(digits)), test_size=360, random_state=SPLIT_SEED, stratify=digits)
    train, validation = train_test_split(rest, test_size=360, random_state=SPLIT_SEED, stratify=digits[rest])
    chosen = {"train": train, "validation": validation, "held out": held_out}
    return {name: (images[rows], digits[rows]) for name, rows in chosen.items()}


def image_processor() -> ViTImageProcessorPil:
    """Return a processor from 0..255 to -1..1, for the images with three channels that pipelines pass."""
    mean = [0.5, 0.5, 0.5]
    return ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=mean, image_std=mean, do_convert_rgb=True)


def train(output: Path, *, seed: int = 0, epochs: int = EPOCHS) -> dict[str, float]:
    """Train, evaluate, write a model directory with results.json and attention.png, and return the results.

    Raises:
        UserError: `output` is not empty.
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
        trainer = Trainer(model, arguments, augment, sets["train"], compute_metrics=_accuracy)
        trainer.train()
        trainer.data_collator = default_collate
        results = {"seed": seed, "epochs": epochs, "seconds": round(time.perf_counter() - start, 1)}
        for name in ("validation", "held out"):
            results[f"{name} accuracy"] = round(trainer.evaluate(sets[name])["eval_accuracy"], 4)
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        image = Image.fromarray(splits()["held out"][0][0])
        image.save(staging / "example.png")
        attention = read_image_attention(model.eval(), processor, image)
        draw_over_image(attention, image).savefig(staging / "attention.png", dpi=100)
        atomic_write_json(staging / "results.json", results)
    return results


def _accuracy(predicted: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    logits, labels = predicted
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def main() -> None:
    settings = parse("digits", __doc__, DigitsSettings)
    for name, value in train(settings.output, seed=settings.seed).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(run_command(main))
