"""Writes small data sets with TFDS, as a user's own builder does."""

import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered


def write(name, features, examples, data_dir, *, version="1.0.0", shards=1,
          split="train", file_format="array_record"):  # fmt: skip
  """Writes a data set of one split; returns its folder."""

  with registered.skip_registration():

    class Own(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version(version)
      pkg_dir_path = None

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features)
        )

      def _split_generators(self, manager):
        return {split: iter(enumerate(examples))}

      def _generate_examples(self):
        raise NotImplementedError

  Own.name = name
  builder = Own(data_dir=str(data_dir), file_format=file_format)
  config = tfds.download.DownloadConfig(num_shards=shards)
  builder.download_and_prepare(download_config=config)
  return builder.data_path
