"""A file is written as a whole, or what was there stays."""

import os

import fsspec
import pytest

from vmoe_study.files.atomic import open_atomically, write_atomically


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
  """A folder that does not exist yet, on two kinds of file system."""
  if request.param == "local":
    return f"{tmp_path}/new/folder"
  return f"memory://{tmp_path}/new"


def read(path):
  with fsspec.open(path, "rb") as file:
    return file.read()


def names(folder):
  fs, path = fsspec.core.url_to_fs(folder)
  return [os.path.basename(name) for name in fs.ls(path, detail=False)]


def test_text_and_bytes_replace_what_was_there(folder):
  path = f"{folder}/file"
  write_atomically(path, "größer\n")
  assert read(path).decode() == "größer\n"
  write_atomically(path, b"\x00\xff")
  assert read(path) == b"\x00\xff"
  assert names(folder) == ["file"]


def test_a_failure_changes_nothing(folder):
  path = f"{folder}/file"
  write_atomically(path, "old")
  with pytest.raises(KeyboardInterrupt), open_atomically(path) as file:
    file.write(b"half")
    raise KeyboardInterrupt
  assert read(path) == b"old"
  assert names(folder) == ["file"]


def test_the_file_appears_when_it_is_complete(folder):
  path = f"{folder}/file"
  with open_atomically(path) as file:
    file.write(b"half")
    assert "file" not in names(folder)
  assert read(path) == b"half"


def test_writers_do_not_meet_in_a_temporary_file(folder):
  path = f"{folder}/file"
  with open_atomically(path) as one, open_atomically(path) as other:
    one.write(b"one")
    other.write(b"other")
  assert read(path) == b"one"
  assert names(folder) == ["file"]


def test_a_folder_is_not_replaced(tmp_path):
  (tmp_path / "folder").mkdir()
  with pytest.raises(OSError):
    write_atomically(tmp_path / "folder", "text")
  assert os.listdir(tmp_path) == ["folder"]
  assert not os.listdir(tmp_path / "folder")


def test_a_tilde_is_a_name(tmp_path, monkeypatch):
  """As it is for Python's own functions; the shell expands it."""
  monkeypatch.chdir(tmp_path)
  write_atomically("~/file", "text")
  assert (tmp_path / "~" / "file").read_text() == "text"
