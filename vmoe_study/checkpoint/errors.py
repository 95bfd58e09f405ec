"""The error of checkpoints that cannot be read or written."""


class CheckpointError(Exception):
  """A checkpoint's file is missing, damaged, or could not be written."""


def one_line(error: Exception) -> str:
  """A library's error message, without the middle if it is very long.

  What failed stands at its beginning, and the cause at its end.
  """
  text = str(error).partition("See full TensorStore details")[0]
  text = " ".join(text.split())
  if len(text) > 400:
    text = f"{text[:200]} ... {text[-195:]}"
  return text or type(error).__name__
