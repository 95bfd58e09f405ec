"""The error of checkpoints that cannot be read or written."""


class CheckpointError(Exception):
  """A checkpoint's file is missing, damaged, or could not be written."""


def brief(error: Exception) -> str:
  """The beginning of a library's error message, which may be very long."""
  text = str(error).partition("See full TensorStore details")[0]
  return " ".join(text.split())[:400] or type(error).__name__
