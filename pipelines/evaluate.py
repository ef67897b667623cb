"""Stage ``evaluate``: how the trained network does on images that it has never seen."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from digits import FOLDER, LABELS
from dvc_integrity.torch import VerifiedFiles
from model import DigitsNet, decode

__all__ = ["Scores", "load_model", "predict", "save", "score"]

MODEL = "models/digits.pt"
METRICS = "metrics/test.json"
CONFUSION = "plots/confusion.csv"

DECIMALS = 6
"""Decimals of a published figure."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures on the test images.

    ``loss`` is the mean cross-entropy; ``recall`` is the share of each label's images that
    were recognised, from the label's digit to the share.
    """

    samples: int
    accuracy: float
    loss: float
    recall: dict[str, float]


def load_model(path: str, channels: int, dropout: float) -> DigitsNet:
    """Return the trained network, ready to predict on the CPU."""
    model = DigitsNet(channels, dropout)
    # Weights only: a pickle could run any code.
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


@torch.inference_mode()
def predict(model: nn.Module, batches: DataLoader[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return the logits, float32[n, 10], and the true labels, int64[n]."""
    results = [(model(images), labels) for images, labels in batches]
    return torch.cat([logits for logits, _ in results]), torch.cat([true for _, true in results])


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Compare the logits, float32[n, 10], with the true labels, int64[n].

    Raises
    ------
    ValueError
        If a label has no image: its recall would be undefined.
    """
    right = logits.argmax(1) == labels
    recall = {}
    for label in range(LABELS):
        members = right[labels == label]
        if not len(members):
            raise ValueError(f"no test image has the label {label}: its recall is undefined")
        recall[str(label)] = _share(members)
    loss = round(float(nn.functional.cross_entropy(logits, labels)), DECIMALS)
    return Scores(len(labels), _share(right), loss, recall)


def _share(right: Tensor) -> float:
    return round(int(right.sum()) / len(right), DECIMALS)


def save(scores: Scores, logits: Tensor, labels: Tensor) -> None:
    """Write the metrics and one row (actual, predicted) per image, which DVC counts itself."""
    for path in (METRICS, CONFUSION):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(METRICS).write_text(json.dumps(asdict(scores), indent=2) + "\n", encoding="utf-8")
    with open(CONFUSION, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["actual", "predicted"])
        rows.writerows(zip(labels.tolist(), logits.argmax(1).tolist(), strict=True))


def main() -> None:
    """Run the stage with the parameters of ``params.yaml``."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings = params["evaluate"]
    torch.set_num_threads(settings["threads"])
    data = VerifiedFiles(f"{FOLDER}/test", rev=params["verify"]["rev"], decode=decode)
    model = load_model(MODEL, **params["model"])
    logits, labels = predict(model, DataLoader(data, settings["batch_size"]))
    scores = score(logits, labels)
    save(scores, logits, labels)
    print(f"evaluate: accuracy {scores.accuracy:.4f} on {scores.samples} images")


if __name__ == "__main__":
    main()
