"""A workdir belongs to one config."""

import json
import logging

import pytest

from configs import digits
from vmoe_study.run import workdir

CONFIG = digits.get_config().to_dict()


def changed(**train):
  return {**CONFIG, "train": {**CONFIG["train"], **train}}


@pytest.fixture
def claimed(tmp_path):
  workdir.write_config(tmp_path, CONFIG)
  return tmp_path


def recorded(path):
  return json.loads((path / workdir.CONFIG_FILE).read_text())


def test_a_new_folder_and_the_same_config_are_fine(tmp_path):
  workdir.check(tmp_path / "new", CONFIG)
  workdir.write_config(tmp_path / "new", CONFIG)
  workdir.check(tmp_path / "new", CONFIG)
  assert recorded(tmp_path / "new") == json.loads(json.dumps(CONFIG))


def test_a_harmless_change_is_refused_unless_allowed(claimed, caplog):
  new = changed(save_every=7)
  with pytest.raises(ValueError) as error:
    workdir.check(claimed, new)
  assert "train.save_every: 900 -> 7" in str(error.value)
  assert "--allow-change" in str(error.value)

  logging.getLogger("absl").addHandler(caplog.handler)
  workdir.check(claimed, new, allow_change=True)
  logging.getLogger("absl").removeHandler(caplog.handler)
  assert "train.save_every: 900 -> 7" in caplog.text
  workdir.write_config(claimed, new)
  assert recorded(claimed)["train"]["save_every"] == 7
  workdir.check(claimed, new)


def test_damaged_examples_may_be_skipped_later(claimed):
  new = json.loads(json.dumps(CONFIG))
  task = new["fewshot"]["digits"]
  for data in (new["data"], new["evaluations"]["test"]["data"], task["train"]):
    data["on_error"] = "skip"
  with pytest.raises(ValueError, match=r"(?s)fewshot.*--allow-change lets"):
    workdir.check(claimed, new)
  workdir.check(claimed, new, allow_change=True)


def test_any_other_change_is_refused_with_the_difference(claimed):
  new = changed(save_every=7, batch_size=128)
  for allow in (False, True):
    with pytest.raises(ValueError) as error:
      workdir.check(claimed, new, allow_change=allow)
    assert "train.batch_size: 64 -> 128" in str(error.value)
    assert "train.save_every: 900 -> 7" in str(error.value)
    assert "--allow-change" not in str(error.value)


def test_a_field_newer_than_the_run_has_its_default(claimed):
  old = recorded(claimed)
  del old["train"]["health"], old["train"]["on_save_error"]
  (claimed / workdir.CONFIG_FILE).write_text(json.dumps(old))
  workdir.check(claimed, CONFIG)
  health = {**CONFIG["train"]["health"], "on_nonfinite": "skip"}
  with pytest.raises(ValueError, match="on_nonfinite: stop -> skip"):
    workdir.check(claimed, changed(health=health))


def test_a_lost_or_damaged_config_file(claimed):
  file, new = claimed / workdir.CONFIG_FILE, changed(batch_size=128)
  file.write_text("")
  with pytest.raises(ValueError, match="config.json is damaged: .* Remove it"):
    workdir.check(claimed, CONFIG)
  file.unlink()
  workdir.check(claimed, CONFIG, saved=CONFIG)
  with pytest.raises(ValueError, match="train.batch_size: 64 -> 128"):
    workdir.check(claimed, new, saved=CONFIG)
