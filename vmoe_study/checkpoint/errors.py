"""The error for checkpoints that cannot be read or written."""


class CheckpointError(Exception):
  """A file of a checkpoint is missing, damaged, or could not be written."""


def one_line(error: Exception) -> str:
  """A library's error message, shortened in the middle if it is very long.

  Such messages begin with what failed and end with the cause.
  """
  text = str(error).partition("See full TensorStore details")[0]
  text = " ".join(text.split())
  if len(text) > 400:
    text = f"{text[:200]} ... {text[-195:]}"
  return text or type(error).__name__
