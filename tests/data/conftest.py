"""Data sets shared by the tests of this folder, built once."""

import os
import pathlib

import pytest

from vmoe_study.data import builders

from ..shared import make_once


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Keeps offset indices out of the user's own cache folder."""
  os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
  """A TFDS folder with `digits` and `jft_like/40`."""

  def make(folder: pathlib.Path) -> None:
    builders.prepare("digits", str(folder))
    builders.prepare("jft_like/40", str(folder))

  return str(make_once(tmp_path_factory, "digits_and_jft_like", make))
