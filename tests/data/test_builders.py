"""Building data sets from local files; errors name what is missing."""

import collections
import gzip
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vmoe_study.data import builders
from vmoe_study.data.builders import MissingDataError
from vmoe_study.data.dataset_specs import DATASETS
from vmoe_study.data.datasets import emoji, fashion_mnist, jft_like
from vmoe_study.data.decoding import decode
from vmoe_study.data.sources import open_split


@pytest.fixture
def fashion_files(tmp_path):
  """Four small idx files in the layout of the Debian package."""
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (("train", 30), ("t10k", 10)):
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    labels = rng.integers(0, 10, count, np.uint8)
    arrays[split] = images, labels
    write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", labels)
  return tmp_path, arrays


def write_idx(path: Path, array: np.ndarray) -> None:
  """Writes a gzipped idx file of bytes."""
  header = bytes([0, 0, 8, array.ndim])
  sizes = np.asarray(array.shape, ">i4").tobytes()
  path.write_bytes(gzip.compress(header + sizes + array.tobytes()))


def test_fashion_mnist_from_idx_files(fashion_files, tmp_path):
  manual_dir, arrays = fashion_files
  data_dir = str(tmp_path / "tfds")
  builders.prepare("fashion_mnist", data_dir, str(manual_dir))
  for split, key in (("train", "train"), ("test", "t10k")):
    images, labels = arrays[key]
    source = open_split("fashion_mnist", split, data_dir)
    assert source.class_names[9] == "Ankle boot"
    expected = {
      image.tobytes(): int(label)
      for image, label in zip(images, labels, strict=True)
    }
    found = {
      decode(source[i]["image"], 1).tobytes(): source[i]["label"]
      for i in range(len(source))
    }
    assert found == expected


def test_a_missing_file_is_named_with_the_command(fashion_files, tmp_path):
  manual_dir, _ = fashion_files
  (manual_dir / "t10k-labels-idx1-ubyte.gz").unlink()
  with pytest.raises(MissingDataError) as error:
    builders.prepare("fashion_mnist", str(tmp_path / "t"), str(manual_dir))
  message = str(error.value)
  assert "needs t10k-labels-idx1-ubyte.gz in" in message
  assert "apt-get install dataset-fashion-mnist" in message


def test_a_damaged_idx_file_is_named(tmp_path):
  write_idx(tmp_path / "file.gz", np.zeros((2, 2), np.uint8))
  assert fashion_mnist.read_idx(tmp_path / "file.gz").shape == (2, 2)
  (tmp_path / "file.gz").write_bytes(gzip.compress(b"garbage"))
  with pytest.raises(ValueError, match=r"file\.gz: starts with b'gar'"):
    fashion_mnist.read_idx(tmp_path / "file.gz")


@pytest.mark.slow
@pytest.mark.skipif(
  not (fashion_mnist.DEBIAN_DIR / "train-images-idx3-ubyte.gz").exists(),
  reason="the Debian package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_of_debian():
  for split, count in (("train", 6000), ("test", 1000)):
    images, labels = (
      fashion_mnist.read_idx(fashion_mnist.DEBIAN_DIR / name)
      for name in fashion_mnist.FILES[split]
    )
    assert images.shape == (10 * count, 28, 28)
    assert np.bincount(labels).tolist() == [count] * 10


@pytest.mark.slow
@pytest.mark.skipif(
  not all(
    (emoji.SHARE_DIR / name).exists() for name in (emoji.FONT, emoji.LIST)
  ),
  reason="the packages fonts-noto-color-emoji, unicode-data are not installed",
)
def test_emoji_of_debian(tmp_path, monkeypatch):
  """Every emoji of the list is in the font; five of each subgroup are drawn."""
  subgroups = collections.defaultdict(list)
  for subgroup, points in emoji.read_list(emoji.SHARE_DIR / emoji.LIST):
    subgroups[subgroup].append((subgroup, points))
  sizes = np.array([len(found) for found in subgroups.values()])
  in_test = (sizes // emoji.TEST_EVERY).sum()
  assert len(sizes) == 99 and sizes.sum() - in_test > 4 * in_test > 2000
  font = emoji.EmojiFont(emoji.SHARE_DIR / emoji.FONT)
  with monkeypatch.context() as patch:
    blank = np.zeros((1, 1, 4), np.uint8)
    patch.setattr(emoji.cv2, "imdecode", lambda *unused: blank)
    for _, points in itertools.chain(*subgroups.values()):
      font.image(points)

  few = [row for found in subgroups.values() for row in found[:5]]
  monkeypatch.setattr(emoji, "read_list", lambda path: few)
  builders.prepare("emoji", str(tmp_path))
  train = open_split("emoji", "train", str(tmp_path))
  test = open_split("emoji", "test", str(tmp_path))
  assert train.num_classes == 99
  assert len(test) == (sizes >= 5).sum() == len(few) - len(train)
  image = decode(train[0]["image"])
  assert image.shape == (128, 136, 3) and (image[0, 0] == 255).all()


def test_emoji_list_is_read_by_subgroup(tmp_path):
  (tmp_path / "list").write_text(
    "# group: Smileys\n# subgroup: face-smiling\n"
    "1F600 ; fully-qualified # x E1.0 grinning face\n"
    "263A FE0F ; fully-qualified # x E0.6 smiling face\n"
    "263A ; unqualified # x E0.6 smiling face\n"
    "# subgroup: cat-face\n1F63A ; fully-qualified # x E0.6 cat\n",
    encoding="utf-8",
  )
  assert emoji.read_list(tmp_path / "list") == [
    ("face-smiling", (0x1F600,)),
    ("face-smiling", (0x263A,)),
    ("cat-face", (0x1F63A,)),
  ]


def test_building_twice_gives_the_same(data_dir, tmp_path):
  builders.prepare("jft_like/40", str(tmp_path))
  first = open_split("jft_like/40", "test", data_dir)
  second = open_split("jft_like/40", "test", str(tmp_path))
  assert [first[i]["image"] for i in range(4)] == [
    second[i]["image"] for i in range(4)
  ]


def test_jft_like_labels_have_a_long_tail():
  rng = np.random.default_rng(0)
  drawn = [jft_like.sample_labels(rng) for _ in range(20_000)]
  labels = np.concatenate(drawn)
  assert labels.min() >= 0 and labels.max() < jft_like.NUM_CLASSES
  assert labels.max() > 0.9 * jft_like.NUM_CLASSES
  # P(class 0) is 1 / log2(18292) for weights falling as one over the rank.
  head = np.mean([0 in row for row in drawn])
  assert 0.07 < head < 0.1
  assert 1.1 < np.mean([len(row) for row in drawn]) < 1.3


def test_tfds_sets_are_built_with_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(MissingDataError, match="extra `tfds`"):
    builders.prepare("mnist", str(tmp_path), download=True)
  with pytest.raises(MissingDataError, match="Did you mean"):
    builders.prepare("mnistt", str(tmp_path), download=True)


@pytest.mark.process
def test_three_processes_build_digits_at_once_and_without_tensorflow(tmp_path):
  code = (
    "import sys; from vmoe_study.data.sources import open_split;"
    f"assert len(open_split('digits', 'train', {str(tmp_path)!r})) == 1438;"
    "assert 'tensorflow' not in sys.modules"
  )
  command = [sys.executable, "-c", code]
  processes = [subprocess.Popen(command) for _ in range(3)]
  assert [process.wait() for process in processes] == [0, 0, 0]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("no_such_set", "no builder is known"),
    ("cifar10", "Allow it with --download"),
    ("imagenet2012", "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar in"),
  ],
)
def test_nothing_is_downloaded_unasked(tmp_path, name, message):
  with pytest.raises(MissingDataError, match=message):
    builders.prepare(name, str(tmp_path))
  assert not list(tmp_path.rglob("*.*record*"))


def test_a_data_set_is_not_built_in_a_store(monkeypatch, tmp_path):
  builder = builders.make_builder("jft_like/8", str(tmp_path))
  monkeypatch.setattr(builders, "make_builder", lambda *unused: builder)
  with pytest.raises(ValueError, match="must be a local folder.*--to=URL"):
    builders.prepare("jft_like/8", "gs://bucket/tfds")


def test_jft_like_needs_a_number(tmp_path):
  with pytest.raises(ValueError, match="jft_like/5000"):
    builders.prepare("jft_like/many", str(tmp_path))


@pytest.mark.parametrize(
  "name", [n for n in DATASETS if n.split("/")[0] not in builders.OWN_DATASETS]
)
def test_dataset_specs_agree_with_tfds(name, tmp_path):
  builder = tfds.builder(name, data_dir=str(tmp_path), try_gcs=False)
  spec = DATASETS[name]
  feature = builder.info.features[spec.label_key]
  feature = getattr(feature, "feature", feature)
  assert feature.num_classes == spec.num_classes
  assert bool(builder.MANUAL_DOWNLOAD_INSTRUCTIONS) == bool(spec.manual)
  assert isinstance(builder.info.features["image"], tfds.features.Image)
