"""Exit codes of the commands, other than 0."""

FAILED = 1  # The run failed; running it again unchanged would fail again.
USAGE_ERROR = 2  # Invalid input or setup; stderr says what.
PREEMPTED = 75  # Stopped on request after a checkpoint; run again to resume.
INTERRUPTED = 130  # By Ctrl-C, without saving: 128 + SIGINT.
