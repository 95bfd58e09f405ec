"""What a checkpoint that cannot be used raises."""


class CheckpointError(Exception):
  """A file of a checkpoint is missing, damaged or not what it claims to be."""


def brief(error: Exception) -> str:
  """The start of an error of a library, which may be pages long."""
  return " ".join(str(error).split())[:400] or type(error).__name__
