"""What a core decodes, as the log shows it."""

from vmoe_study.data.decode_rate import decode_rate, describe_rate
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.spec import DataSpec


def test_the_rate_is_that_of_the_whole_recipe(digits_folder):
  """Sixteen distortions take longer than none."""
  plain, busy = (
    decode_rate(
      ExampleReader(DataSpec("digits", "train", ops, 10, str(digits_folder)))
    )
    for ops in ("value_range(0, 1)", "randaug(16, 10)|value_range(0, 1)")
  )
  assert plain > 3 * busy > 0


def test_the_line_of_the_log():
  assert describe_rate(400.0, 0) == (
    "a core decodes 400 images/s of the training data; threads of this process "
    "do it"
  )
  assert describe_rate(400.0, 100).endswith(
    "with num_workers=100, this host at most 40,000 images/s"
  )
