"""What the exit code of a command says, besides 0."""

FAILED = 1  # Training itself failed; run again, it would again.
USAGE_ERROR = 2  # The input or the machine is not as it must be; see stderr.
PREEMPTED = 75  # Stopped on request, with a checkpoint. Run again.
