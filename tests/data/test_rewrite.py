"""`prepare --to`: the same examples, shuffled once, resumable."""

import json

import fsspec
import numpy as np
import pytest

from vmoe_study.cli.main import main
from vmoe_study.data import rewrite
from vmoe_study.data.sources import open_split


def examples(folder, split="train"):
  source = open_split("digits", split, str(folder))
  return [
    (e["image"], int(e["label"])) for e in source.read(range(len(source)))
  ]


def test_the_same_examples_in_another_order(digits_folder, tmp_path):
  seen = []
  rewrite.rewrite(
    "digits", str(digits_folder), str(tmp_path), lambda *a: seen.append(a)
  )
  for split in ("train", "test"):
    before, after = examples(digits_folder, split), examples(tmp_path, split)
    assert before != after
    assert sorted(before) == sorted(after)
  assert len(seen) == 2  # One file for each split.


def test_any_file_system_will_do(digits_folder):
  folder = rewrite.rewrite(
    "digits", str(digits_folder), "memory://new", lambda *a: None
  )
  files = fsspec.filesystem("memory").ls(folder, detail=False)
  names = {file.rpartition("/")[2] for file in files}
  assert {"dataset_info.json", "features.json"} <= names
  assert "digits-train.array_record-00000-of-00001" in names


def test_a_stopped_rewrite_goes_on(digits_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(rewrite, "FILE_BYTES", 30_000)
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  command = ["prepare", "digits", f"--data-dir={digits_folder}"]
  assert main([*command, f"--to={whole}"]) == 0
  write, files = rewrite._write_file, []

  def fail_at_third(records, url):
    if len(files) == 2:
      raise OSError("the disk is full")
    files.append(url)
    return write(records, url)

  monkeypatch.setattr(rewrite, "_write_file", fail_at_third)
  with pytest.raises(OSError, match="disk is full"):
    rewrite.rewrite("digits", str(digits_folder), str(stopped), print)
  assert not list(stopped.rglob("*.json"))  # It is no data set yet.
  monkeypatch.setattr(rewrite, "_write_file", write)
  kept = {f: (stopped / f).stat().st_mtime_ns for f in files}
  rewrite.rewrite("digits", str(digits_folder), str(stopped), lambda *a: None)
  assert kept == {f: (stopped / f).stat().st_mtime_ns for f in files}
  assert examples(stopped) == examples(whole)
  (info,) = whole.rglob("dataset_info.json")
  splits = json.loads(info.read_text())["splits"]
  assert len(splits[0]["shardLengths"]) > 3
  sizes = np.array(splits[0]["shardLengths"], int)
  assert (sizes[:-1] == sizes[0]).all() and sizes[-1] <= sizes[0]


def test_a_data_set_is_not_written_onto_itself(digits_folder):
  with pytest.raises(ValueError, match="is the folder that the data set is in"):
    rewrite.rewrite("digits", str(digits_folder), str(digits_folder), print)
