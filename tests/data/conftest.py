"""Data sets shared by the tests of this folder, built once."""

import os

import pytest

from vmoe_study.data import builders


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Keeps offset indices out of the user's own cache folder."""
  os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
  """A TFDS folder with `digits` and `jft_like/40`."""
  folder = str(tmp_path_factory.mktemp("tfds"))
  builders.prepare("digits", folder)
  builders.prepare("jft_like/40", folder)
  return folder
