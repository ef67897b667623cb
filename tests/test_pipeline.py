"""The repository's own pipeline: what its stages promise about data, training and figures."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import digits
import evaluate
import ingest
import train
from model import DigitsNet, decode

ROOT = Path(__file__).parents[1]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))

DIGITS_MD5 = "5bd47807d3a6e05d0e5ed1a4e95bbc41.dir"
"""What DVC calls the folder that ``ingest`` writes, on every machine."""

PER_LABEL = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Samples of each label in the source."""

HEADER = b"P5\n8 8\n16\n"


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Return an empty folder with the project's params.yaml, which is the working directory."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def samples():
    """Return the validated digits."""
    return ingest.parse(ingest.checked(ingest.read_source(), PARAMS["ingest"]["sha256"]))


@pytest.fixture
def table(samples):
    """Return images and labels as they come out of the source, to be spoiled."""
    return samples.images.reshape(-1, 64).astype(np.float64), samples.labels.astype(np.float64)


@pytest.fixture
def global_torch_state():
    """Give PyTorch's process-wide settings back as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def image_file(pixels=bytes(64)):
    return HEADER + pixels


def dvc_folder_md5(folder):
    """Hash a folder as DVC does: the MD5 of the JSON list of its files' MD5s."""
    entries = [
        {
            "md5": hashlib.md5(path.read_bytes()).hexdigest(),
            "relpath": str(path.relative_to(folder)),
        }
        for path in folder.rglob("*")
        if path.is_file()
    ]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode()).hexdigest() + ".dir"


def test_ingest_refuses_another_source_before_it_parses_it(workdir, monkeypatch):
    """A source with one flipped bit is refused unparsed, by a message that says what to do."""
    source = flipped(ingest.read_source(), 40_000)
    monkeypatch.setattr(ingest, "read_source", lambda: source)
    monkeypatch.setattr(ingest, "parse", lambda _: pytest.fail("parsed before it was checked"))
    with pytest.raises(SystemExit) as refusal:
        ingest.main()
    message = refusal.value.code
    assert PARAMS["ingest"]["sha256"] in message
    assert hashlib.sha256(source).hexdigest() in message
    assert "pip install --force-reinstall" in message
    assert "params.yaml" in message
    assert not (workdir / "data").exists()


def test_ingest_parses_the_very_bytes_that_were_hashed(workdir, monkeypatch):
    """The source is read once: a file that changes after the check cannot slip in."""
    reads = iter([ingest.read_source()])
    monkeypatch.setattr(ingest, "read_source", lambda: next(reads))
    ingest.main()
    assert DIGITS_MD5 == dvc_folder_md5(workdir / "data/digits")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(b"1,2,3\n", id="not compressed"),
        pytest.param(gzip.compress(b"1,2,3\n")[:-4], id="cut short"),
        pytest.param(flipped(gzip.compress(b"1,2,3\n"), 10), id="damaged stream"),
        pytest.param(gzip.compress(b"1,2\n1,2,3\n"), id="ragged"),
        pytest.param(gzip.compress(b"1,two,3\n"), id="words"),
        pytest.param(gzip.compress(b"\xff,1\n"), id="not ASCII"),
    ],
)
def test_ingest_refuses_what_is_no_table(source):
    """A file that somebody vouched for and that is yet no table gives a clear refusal."""
    with pytest.raises(ingest.SourceError, match=r"digits\.csv\.gz is not a compressed table"):
        ingest.parse(source)


def test_ingest_refuses_an_empty_table():
    """A compressed file without a line is refused for its shape."""
    with pytest.raises(ingest.SourceError, match=r"images of shape \(1797, 64\), found"):
        ingest.parse(gzip.compress(b""))


def test_ingest_writes_the_same_folder_on_every_machine(workdir):
    """The folder has the hash that DVC gives it everywhere, and nothing lies beside it."""
    ingest.main()
    assert DIGITS_MD5 == dvc_folder_md5(workdir / "data/digits")
    assert ["digits"] == os.listdir(workdir / "data")


def test_the_committed_lock_records_that_folder():
    """dvc.lock holds the pipeline to the folder that ``ingest`` writes."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
    (out,) = lock["stages"]["ingest"]["outs"]
    assert (digits.FOLDER, DIGITS_MD5) == (out["path"], out["md5"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_ingest_refuses_numbers_that_are_not_finite(table, bad):
    """One pixel or one label that is NaN or infinite spoils the source."""
    images, labels = table
    labels[1000] = bad
    with pytest.raises(ingest.SourceError, match="expected finite labels, found 1 that"):
        ingest.Samples.validated(images, labels)
    images[1000, 33] = bad
    with pytest.raises(ingest.SourceError, match="expected finite pixels, found 1 that"):
        ingest.Samples.validated(images, labels)


@pytest.mark.parametrize("bad", [-1.0, 17.0, 0.5])
def test_ingest_refuses_a_pixel_out_of_range(table, bad):
    """One pixel that is not an integer from 0 to 16 spoils the source."""
    images, labels = table
    images[1000, 33] = bad
    with pytest.raises(ingest.SourceError, match=rf"integers from 0 to 16, .* \[{bad}\]"):
        ingest.Samples.validated(images, labels)


@pytest.mark.parametrize("bad", [-1.0, 10.0, 2.5])
def test_ingest_refuses_a_label_out_of_range(table, bad):
    """One label that is not an integer from 0 to 9 spoils the source."""
    images, labels = table
    labels[1000] = bad
    with pytest.raises(ingest.SourceError, match=rf"integers from 0 to 9, .* \[{bad}\]"):
        ingest.Samples.validated(images, labels)


def test_ingest_refuses_a_source_without_one_of_the_digits(table):
    """A label that never occurs spoils the source."""
    images, labels = table
    labels[labels == 4] = 9
    with pytest.raises(ingest.SourceError, match="every label from 0 to 9, found"):
        ingest.Samples.validated(images, labels)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (1796, 64, r"images of shape \(1797, 64\), found \(1796, 64\)"),
        (1797, 63, r"images of shape \(1797, 64\), found \(1797, 63\)"),
    ],
)
def test_ingest_refuses_another_shape(table, rows, columns, message):
    """A source with a sample or a pixel too few is refused."""
    images, labels = table
    with pytest.raises(ingest.SourceError, match=message):
        ingest.Samples.validated(images[:rows, :columns], labels)


def test_ingest_refuses_labels_that_do_not_pair_with_the_images(table):
    """As many labels as images are asked for."""
    images, labels = table
    with pytest.raises(ingest.SourceError, match=r"labels of shape \(1797,\), found \(1796,\)"):
        ingest.Samples.validated(images, labels[:-1])


def test_ingest_puts_each_sample_into_one_part(workdir, samples):
    """Every sample lies in train or test, once, under its label, with its own pixels."""
    ingest.main()
    folder = workdir / digits.FOLDER
    seen = []
    for path in folder.rglob("*.pgm"):
        part, label, name = path.relative_to(folder).parts
        index = int(name.removesuffix(".pgm"))
        seen.append(index)
        assert part in {"train", "test"}
        assert samples.labels[index] == int(label)
        pixels = digits.decode(path.read_bytes(), str(path))
        assert samples.images[index].tolist() == pixels.tolist()
    assert list(range(1797)) == sorted(seen)


def test_the_split_is_stratified(samples):
    """The test part has a fifth of each label, to the nearest sample."""
    assert Counter(dict(enumerate(PER_LABEL))) == Counter(samples.labels.tolist())
    is_test = ingest.split(samples.labels, seed=1, test_share=0.2)
    expected = {label: round(count * 0.2) for label, count in enumerate(PER_LABEL)}
    assert expected == dict(Counter(samples.labels[is_test].tolist()))


def test_the_split_follows_its_seed_alone(samples):
    """The same seed gives the same split, another seed another one."""
    first = ingest.split(samples.labels, seed=1, test_share=0.2).tolist()
    assert first == ingest.split(samples.labels, seed=1, test_share=0.2).tolist()
    assert first != ingest.split(samples.labels, seed=2, test_share=0.2).tolist()


def test_a_failed_ingest_leaves_the_former_folder(workdir, samples, monkeypatch):
    """A failure half way leaves the finished folder as it was, and no half beside it."""
    ingest.main()
    full = ingest.encode
    images = iter(range(100))

    def disk_fills(image):
        if next(images, None) is None:
            raise OSError(28, "No space left on device")
        return full(image)

    monkeypatch.setattr(ingest, "encode", disk_fills)
    with pytest.raises(OSError, match="No space left"):
        ingest.write(samples, np.zeros(1797, dtype=np.bool_), digits.FOLDER)
    assert DIGITS_MD5 == dvc_folder_md5(workdir / "data/digits")
    assert ["digits"] == os.listdir(workdir / "data")


def test_a_failed_first_ingest_leaves_nothing(workdir, monkeypatch):
    """No folder bears the final name before it is complete."""

    def disk_is_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingest, "encode", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        ingest.main()
    assert [] == os.listdir(workdir / "data")


def test_ingest_puts_the_former_folder_back_when_the_new_one_cannot_take_its_name(
    workdir, samples, monkeypatch
):
    """A rename that fails between old and new brings the old one back."""
    ingest.main()
    rename = os.rename

    def refuse_the_new_one(source, target):
        if os.path.basename(source) == "fresh":
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_the_new_one)
    with pytest.raises(PermissionError):
        ingest.write(samples, np.ones(1797, dtype=np.bool_), digits.FOLDER)
    assert DIGITS_MD5 == dvc_folder_md5(workdir / "data/digits")


def test_ingest_replaces_a_former_folder_whole(workdir):
    """A second run leaves nothing of what was there before."""
    stray = workdir / "data/digits/train/3/stray.pgm"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"")
    ingest.main()
    assert DIGITS_MD5 == dvc_folder_md5(workdir / "data/digits")


@given(st.lists(st.integers(0, 16), min_size=64, max_size=64))
def test_an_image_survives_its_file(pixels):
    """Decoding what was encoded gives the same pixels."""
    image = np.array(pixels, dtype=np.uint8).reshape(8, 8)
    assert pixels == digits.decode(digits.encode(image), "a/3/0001.pgm").ravel().tolist()


def test_an_image_file_is_a_binary_grey_map():
    """The bytes are the ones that Netpbm's definition asks for, and no others."""
    expected = b"P5\n8 8\n16\n" + bytes(range(16)) * 4
    assert expected == digits.encode(np.tile(np.arange(16, dtype=np.uint8), 4).reshape(8, 8))


@given(st.integers(0, len(image_file()) - 1))
def test_a_truncated_image_is_refused_by_name(length):
    """Every proper prefix of an image file is an error that names the file."""
    with pytest.raises(ValueError, match=r"'train/3/0042\.pgm'"):
        decode(image_file()[:length], "train/3/0042.pgm")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(image_file() + b"\0", id="a byte too many"),
        pytest.param(b"P2" + image_file()[2:], id="another magic number"),
        pytest.param(image_file().replace(b"8 8", b"4 8"), id="another width"),
        pytest.param(image_file().replace(b"16", b"15"), id="another scale"),
        pytest.param(image_file(bytes(63) + b"\x11"), id="a pixel above the scale"),
    ],
)
def test_a_malformed_image_is_refused_by_name(data):
    """Whatever is not exactly an image of the digits is an error that names the file."""
    with pytest.raises(ValueError, match=r"'train/3/0042\.pgm'"):
        decode(data, "train/3/0042.pgm")


@pytest.mark.parametrize("path", ["train/10/0001.pgm", "train/x/0001.pgm", "0001.pgm", "²/1.pgm"])
def test_a_folder_that_is_no_digit_is_no_label(path):
    """A label comes from a folder 0 to 9 and from nothing else."""
    with pytest.raises(ValueError, match="not a digit"):
        decode(image_file(), path)


def test_a_sample_is_what_the_network_takes():
    """An image becomes float32[1, 8, 8] from 0 to 1, with the label of its folder."""
    image, label = decode(image_file(bytes([0, 8, 16, *[4] * 61])), "data/digits/train/7/0000.pgm")
    assert 7 == label
    assert (1, 8, 8) == image.shape
    assert torch.float32 == image.dtype
    assert [0.0, 0.5, 1.0, 0.25] == image.flatten()[:4].tolist()


def fit_in_memory(samples, is_test, epochs):
    """Train as the stage does, on samples that are in memory already."""
    settings = train.Settings(**{**PARAMS["train"], "epochs": epochs})
    train.make_deterministic(settings.seed, settings.threads)
    files = [
        (digits.encode(image), digits.sample_name("train", int(label), 0))
        for image, label in zip(samples.images, samples.labels, strict=True)
    ]
    decoded = [decode(data, path) for data, path in files]
    training = [sample for sample, held in zip(decoded, is_test, strict=True) if not held]
    model = DigitsNet(**PARAMS["model"])
    curve = train.fit(model, DataLoader(training, settings.batch_size), settings)
    return model, curve, [sample for sample, held in zip(decoded, is_test, strict=True) if held]


@pytest.mark.usefixtures("global_torch_state")
def test_a_third_of_the_training_reaches_the_promised_accuracy(samples):
    """Five epochs already recognise more than the promised 95 % of the test images."""
    is_test = ingest.split(samples.labels, PARAMS["ingest"]["seed"], 0.2)
    model, curve, tests = fit_in_memory(samples, is_test, epochs=5)
    scores = evaluate.score(*evaluate.predict(model.eval(), DataLoader(tests, 359)))
    assert scores.accuracy > 0.95
    assert curve[-1].loss < curve[0].loss


@pytest.mark.usefixtures("workdir", "global_torch_state")
def test_two_trainings_write_the_same_bytes(samples):
    """Model, metrics and curve of two runs do not differ in a single byte."""
    runs = []
    for _ in range(2):
        model, curve, _ = fit_in_memory(samples, np.arange(1797) >= 256, epochs=1)
        train.save(model, curve)
        runs.append([Path(p).read_bytes() for p in (train.MODEL, train.METRICS, train.CURVES)])
    assert runs[0] == runs[1]


@pytest.mark.usefixtures("workdir")
def test_evaluate_reads_what_train_wrote():
    """The saved weights give the same logits after loading, with dropout switched off."""
    model = DigitsNet(**PARAMS["model"])
    train.save(model, [train.Epoch(1, 0.5, 0.75)])
    images = torch.rand(4, 1, 8, 8)
    loaded = evaluate.load_model(train.MODEL, **PARAMS["model"])
    assert torch.equal(model.eval()(images), loaded(images))


@pytest.mark.usefixtures("workdir")
def test_evaluate_loads_weights_and_nothing_else():
    """A model file that would run code when it is unpickled is refused."""
    os.mkdir("models")
    torch.save({"weights": io.StringIO}, "models/digits.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        evaluate.load_model("models/digits.pt", **PARAMS["model"])


def guesses(pairs):
    """Return logits and labels for (actual, predicted) pairs."""
    labels = torch.tensor([actual for actual, _ in pairs])
    return torch.eye(10)[[predicted for _, predicted in pairs]], labels


def test_scores_count_each_label_apart():
    """One of two threes taken for an eight: recall 0.5 for 3, 1 for the rest."""
    scores = evaluate.score(*guesses([*((label, label) for label in range(10)), (3, 8)]))
    assert 11 == scores.samples
    assert round(10 / 11, 6) == scores.accuracy
    assert {str(label): 0.5 if label == 3 else 1.0 for label in range(10)} == scores.recall
    wrong, right = np.log(np.e + 9), np.log(np.e + 9) - 1
    assert pytest.approx((10 * right + wrong) / 11, abs=1e-6) == scores.loss


def test_scores_refuse_a_label_without_images():
    """A recall over no image is not made up."""
    with pytest.raises(ValueError, match="no test image has the label 9"):
        evaluate.score(*guesses([(label, label) for label in range(9)]))


@pytest.mark.usefixtures("workdir")
def test_the_confusion_plot_has_one_row_per_image():
    """Actual and predicted stand in their columns, in the order of the images."""
    pairs = [*((label, label) for label in range(10)), (3, 8)]
    evaluate.save(evaluate.score(*guesses(pairs)), *guesses(pairs))
    with open(evaluate.CONFUSION, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert pairs == [(int(row["actual"]), int(row["predicted"])) for row in rows]
    assert 0.5 == json.loads(Path(evaluate.METRICS).read_text())["recall"]["3"]


def test_every_reader_of_the_data_waits_for_the_verdict():
    """In dvc.yaml no stage that takes the data can start before ``verify`` has passed."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    verify = stages.pop("verify")
    assert verify["always_changed"] is True
    assert [{"${verify.receipt}": {"cache": False}}] == verify["outs"]
    readers = [stage for stage in stages.values() if "${verify.target}" in stage["deps"]]
    assert 2 == len(readers)
    assert all("${verify.receipt}" in stage["deps"] for stage in readers)
