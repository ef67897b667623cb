"""Stage ``train``: a small convolutional network on images that are verified as they are read.

Two runs on one machine give the same weights, metrics and curves: the seed, the order of the
samples and the number of threads are fixed, and PyTorch may use deterministic kernels only.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from digits import FOLDER
from dvc_integrity.torch import VerifiedFiles
from model import DigitsNet, decode

__all__ = ["Epoch", "Settings", "choose_device", "fit", "loader", "make_deterministic", "save"]

MODEL = "models/digits.pt"
METRICS = "metrics/train.json"
CURVES = "plots/training.csv"

DECIMALS = 6
"""Decimals of a published figure."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The section ``train`` of params.yaml, which explains each field."""

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    workers: int
    threads: int
    device: str


@dataclass(frozen=True, slots=True)
class Epoch:
    """The means over one pass, taken while the weights were moving."""

    epoch: int
    loss: float
    accuracy: float


def choose_device(name: str) -> torch.device:
    """Return the named device; ``auto`` is a GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def make_deterministic(seed: int, threads: int) -> None:
    """Fix everything that could make two runs differ."""
    # cuBLAS reads this when it starts; without it PyTorch refuses its matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def loader(rev: str, settings: Settings) -> DataLoader[tuple[Tensor, int]]:
    """Return the shuffled training images, each held to the hash committed at ``rev``."""
    return DataLoader(
        VerifiedFiles(f"{FOLDER}/train", rev=rev, decode=decode),
        batch_size=settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        generator=torch.Generator().manual_seed(settings.seed),
    )


def fit(
    model: nn.Module, batches: DataLoader[tuple[Tensor, int]], settings: Settings
) -> list[Epoch]:
    """Train ``model`` where its parameters lie; return the curve.

    The learning rate rises to its maximum and falls to almost nothing ("1cycle",
    https://arxiv.org/abs/1708.07120).
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, epochs=settings.epochs, steps_per_epoch=len(batches)
    )
    model.train()
    return [
        _one_pass(number, model, batches, optimizer, schedule)
        for number in range(1, settings.epochs + 1)
    ]


def _one_pass(
    number: int,
    model: nn.Module,
    batches: DataLoader[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> Epoch:
    device = next(model.parameters()).device
    loss_sum, right, samples = 0.0, 0, 0
    for images, labels in batches:
        targets = labels.to(device)
        logits = model(images.to(device))
        loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # PyTorch leaves it untyped
        optimizer.step()
        schedule.step()
        loss_sum += loss.item() * len(targets)
        right += int((logits.argmax(1) == targets).sum())
        samples += len(targets)
    epoch = Epoch(number, round(loss_sum / samples, DECIMALS), round(right / samples, DECIMALS))
    print(f"train: epoch {epoch.epoch} loss {epoch.loss:.4f} accuracy {epoch.accuracy:.4f}")
    return epoch


def save(model: nn.Module, curve: Sequence[Epoch]) -> None:
    """Write the weights, the curve and the last epoch's figures."""
    for path in (MODEL, METRICS, CURVES):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    # On the CPU, so that a machine without a GPU can load what one with a GPU trained.
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, MODEL)
    Path(METRICS).write_text(json.dumps(asdict(curve[-1]), indent=2) + "\n", encoding="utf-8")
    with open(CURVES, "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(Epoch)], lineterminator="\n")
        rows.writeheader()
        rows.writerows(asdict(epoch) for epoch in curve)


def main() -> None:
    """Run the stage with the parameters of ``params.yaml``."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings = Settings(**params["train"])
    make_deterministic(settings.seed, settings.threads)
    model = DigitsNet(**params["model"]).to(choose_device(settings.device))
    save(model, fit(model, loader(params["verify"]["rev"], settings), settings))


if __name__ == "__main__":
    main()
