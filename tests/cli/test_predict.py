"""`predict` on image files, against `evaluate`, the head and Python."""

import dataclasses
import io
import json

import cv2
import jax
import numpy as np
import pytest

from vmoe_study.cli.main import main
from vmoe_study.data.image_header import ImageError
from vmoe_study.data.sources import open_source
from vmoe_study.run.checkpoint import open_checkpoint
from vmoe_study.training.metrics_file import read_metrics


@pytest.fixture(scope="module")
def checkpoint(trained):
  return open_checkpoint(trained, trust_data_dirs=True)


@pytest.fixture(scope="module")
def digits(checkpoint, tmp_path_factory):
  """A folder with the images of the evaluation as files, and their classes."""
  folder = tmp_path_factory.mktemp("digits")
  source = open_source(checkpoint.config.evaluations["test"].data)
  for number in range(len(source)):
    image = source[number]["image"]
    if not isinstance(image, bytes):
      image = cv2.imencode(".png", image)[1].tobytes()
    (folder / f"{number:03d}.png").write_bytes(image)
  return folder, source.labels()


def predict(trained, *arguments):
  return main(["predict", f"--workdir={trained}", *map(str, arguments)])


@pytest.fixture(scope="module")
def predicted(trained, digits, tmp_path_factory):
  """What the command writes for all images: JSON lines and features.

  It needs none of the data sets of the config.
  """
  folder = tmp_path_factory.mktemp("predicted")
  options = [f"--out={folder}/found.jsonl", f"--features={folder}/features.npz"]
  for field in ("data", "evaluations.test.data"):
    options.append(f"--config.{field}.data_dir=/nowhere")
  assert predict(trained, digits[0], *options, "--top=10") == 0
  lines = (folder / "found.jsonl").read_text().splitlines()
  with np.load(folder / "features.npz") as arrays:
    return [json.loads(line) for line in lines], dict(arrays)


def probabilities(line):
  """Of the classes 0 to 9."""
  of_class = {int(c["class"]): c["probability"] for c in line["classes"]}
  return [of_class[number] for number in range(10)]


def test_accuracy_is_that_of_evaluate(trained, digits, predicted):
  folder, labels = digits
  lines, _ = predicted
  assert [line["image"] for line in lines] == sorted(map(str, folder.iterdir()))
  best = [int(line["classes"][0]["class"]) for line in lines]
  rows = [row for row in read_metrics(trained) if "test/accuracy" in row]
  correct = np.float32(np.sum(best == labels))
  assert correct / np.float32(359) == np.float32(rows[-1]["test/accuracy"])


def test_features_and_head_make_the_probabilities(checkpoint, predicted):
  lines, arrays = predicted
  assert arrays["names"].tolist() == [line["image"] for line in lines]
  head = jax.device_get(checkpoint.params["head"])
  logits = arrays["features"] @ head["kernel"] + head["bias"]
  shares = np.exp(logits - logits.max(axis=1, keepdims=True))
  shares /= shares.sum(axis=1, keepdims=True)
  found = np.array([probabilities(line) for line in lines])
  np.testing.assert_allclose(found, shares, atol=1e-5)
  ordered = [[c["probability"] for c in line["classes"]] for line in lines]
  np.testing.assert_array_equal(ordered, -np.sort(-found, axis=1))


def test_python_takes_files_bytes_and_arrays(checkpoint, digits, predicted):
  file = digits[0] / "007.png"
  image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)[..., None]
  found = checkpoint.predict([file, file.read_bytes(), image])
  assert [p.name for p in found] == [str(file), "image 1", "image 2"]
  for prediction in found:
    np.testing.assert_allclose(
      prediction.probabilities, probabilities(predicted[0][7]), atol=2e-6
    )
  [alone] = checkpoint.predict(str(file))
  # With JAX 0.12, the batch decides the last bits.
  np.testing.assert_allclose(
    alone.probabilities, found[0].probabilities, atol=2e-6
  )
  assert [name for name, _ in alone.top(3)] == [
    name for name, _ in found[0].top(3)
  ]
  with pytest.raises(ImageError, match=r"none.png: cannot be read"):
    checkpoint.predict([file, digits[0] / "none.png"])


def test_classes_have_names_and_may_be_several(checkpoint, digits, trained):
  file = digits[0] / "000.png"
  names = tuple(f"digit {number}" for number in range(10))
  named = dataclasses.replace(checkpoint, class_names=names)
  [one] = named.predict(file)
  assert [label for label, _ in one.top(10)] == [
    names[i] for i in np.argsort(-one.probabilities, kind="stable")
  ]
  assert one.probabilities.sum() == pytest.approx(1)
  several = open_checkpoint(
    trained, overrides=["train.loss=sigmoid_xent"], trust_data_dirs=True
  )
  [many] = several.predict(file)
  pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)[None, ..., None]
  logits = checkpoint.apply(pixels.astype(np.float32) / 127.5 - 1)[0]
  np.testing.assert_allclose(
    many.probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5
  )


def test_the_rest_goes_on_if_an_image_is_bad(
  trained, digits, tmp_path, monkeypatch, capsys, caplog
):
  good, bad = digits[0] / "001.png", tmp_path / "bad.png"
  bad.write_bytes(good.read_bytes()[:40])
  lines = io.StringIO(f"{bad}\n\n{good}\n{tmp_path}/none.png\n")
  monkeypatch.setattr("sys.stdin", lines)
  assert predict(trained, "-", "--out=-", "--top=2", "--batch-size=1") == 1
  [line] = map(json.loads, capsys.readouterr().out.splitlines())
  assert line["image"] == str(good) and len(line["classes"]) == 2
  assert f"left out: {bad}: " in caplog.text
  assert f"left out: {tmp_path}/none.png: " in caplog.text
  assert "2 of 3 images could not be used" in caplog.text


def test_a_table_and_pictures(trained, digits, tmp_path, capsys):
  files = [digits[0] / "000.png", digits[0] / "001.png"]
  out = tmp_path / "explained"
  assert predict(trained, *files, f"--explain={out}", "--top=2") == 0
  header, _, *rows = capsys.readouterr().out.splitlines()
  assert header.replace(" ", "") == "|image|top1|top2|"
  assert [row.split()[1] for row in rows] == list(map(str, files))
  assert all(row.count("%") == 2 for row in rows)
  assert sorted(p.name for p in out.iterdir()) == [
    "00001_000.png",
    "00002_001.png",
  ]
  first, second = (cv2.imread(str(p)) for p in sorted(out.iterdir()))
  assert first.shape == second.shape and np.any(first != second)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--config.evaluations={}"], "has no image operations"),
    (["--ops=flip_lr|value_range(-1, 1)"], "must not draw random numbers"),
    (["--ops=resize(10)|value_range(-1, 1)"], "its images are 10 x 10"),
    (["--ops=blur", "--check"], "unknown operation 'blur'"),
  ],
)
def test_what_cannot_be_is_explained(trained, digits, options, message, capsys):
  assert predict(trained, digits[0] / "000.png", *options) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error
