"""What a checkpoint that cannot be used raises."""


class CheckpointError(Exception):
  """A file of a checkpoint is missing, damaged or not what it claims to be."""
