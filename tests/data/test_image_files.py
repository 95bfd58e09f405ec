"""Images that a user names: what a folder stands for, and what is left out."""

import zipfile

import cv2
import fsspec
import numpy as np
import pytest

from vmoe_study.data.image_files import image_batches, list_files, name_images
from vmoe_study.data.ops import parse_ops

OPS = parse_ops("resize(4)|value_range(-1, 1)")


def png(value, size=4):
  pixels = np.full((size, size, 3), value, np.uint8)
  return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture
def photos(tmp_path):
  """Two images, one of them in a folder, among other files."""
  for name in ("b.PNG", "cats/a.png", ".hidden/c.png", "cats/notes.txt"):
    file = tmp_path / "photos" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(7))
  return tmp_path / "photos"


def test_a_folder_stands_for_its_images(photos, monkeypatch):
  monkeypatch.chdir(photos.parent)
  assert list_files("photos/") == ["photos/b.PNG", "photos/cats/a.png"]
  assert list_files(photos)[1] == f"{photos}/cats/a.png"
  monkeypatch.setenv("HOME", str(photos.parent))
  assert list_files("~/photos/cats") == [f"{photos}/cats/a.png"]


def test_urls_are_listed_and_read_by_fsspec(photos):
  store = fsspec.filesystem("memory")
  store.put(str(photos), "/list_files", recursive=True)
  archive = photos.parent / "photos.zip"
  with zipfile.ZipFile(archive, "w") as file:
    file.write(photos / "cats" / "a.png", "cats/a.png")
  found = list_files("memory://list_files/cats")
  found += list_files(f"zip://::{archive}") + list_files(
    f"zip://cats::{archive}"
  )
  assert found == [
    "memory://list_files/cats/a.png",
    f"zip://cats/a.png::{archive}",
    f"zip://cats/a.png::{archive}",
  ]
  [batch] = image_batches(name_images(found), OPS, (4, 4, 3), batch_size=3)
  assert not batch.errors and np.all(batch.image == 7)


def test_web_pages_are_not_searched_for_links():
  url = "http://127.0.0.1:9/photos/"
  assert list_files(url) == [url]


def test_folders_without_images_and_bad_urls_are_refused(tmp_path):
  with pytest.raises(ValueError, match="has no image files"):
    list_files(tmp_path)
  with pytest.raises(ValueError, match="there are none"):
    name_images([])
  with pytest.raises(ValueError, match="must be a local path, or a URL"):
    list_files("nowhere://photos")


def test_images_that_cannot_be_used_are_left_out(photos):
  broken = photos / "broken.png"
  broken.write_bytes(png(7)[:60])
  images = [photos / "none.png", png(1, size=9), broken, np.full_like(BLANK, 2)]
  first, second = image_batches(
    name_images([*images, photos / "b.PNG"]), OPS, (4, 4, 3), batch_size=4
  )
  assert (first.names, second.names) == (
    ["image 1", "image 3"],
    [f"{photos}/b.PNG"],
  )
  assert [image.max() for image in first.image] == [1, 2, 0, 0]
  assert [image.max() for image in second.image] == [7, 0, 0, 0]
  missing, truncated = map(str, first.errors)
  assert missing == (
    f"{photos}/none.png: cannot be read: No such file or directory."
  )
  assert truncated.startswith(f"{broken}: ") and not second.errors


BLANK = np.zeros((4, 4, 3), np.uint8)


def test_a_shape_that_the_model_does_not_take_is_an_error():
  ops = parse_ops("resize_small(4)|value_range(-1, 1)")
  wide = np.zeros((4, 8, 3), np.uint8)
  [batch] = image_batches(name_images([wide]), ops, (4, 4, 3), batch_size=2)
  assert not batch.names
  assert "shape (4, 8, 3) after the operations" in str(batch.errors[0])
