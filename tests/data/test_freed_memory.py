"""Memory that the process keeps."""

import subprocess
import sys

import pytest

# Page faults of a second array of 64 MiB, after the first one was freed.
PROGRAM = """
import resource
import numpy as np
from vmoe_study.data.freed_memory import keep_freed_memory
{call}
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  array = np.ones({size} * 2**20, np.uint8)
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
  del array
print(faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has limits")
@pytest.mark.parametrize(
  ("call", "size", "kept"),
  [
    ("", 64, False),
    ("keep_freed_memory()", 64, True),
    ("keep_freed_memory(2**28)", 16, True),
    ("keep_freed_memory(2**28)", 64, False),  # Its pages are the system's.
  ],
)
def test_a_second_array_gets_the_pages_of_the_first(call, size, kept):
  program = PROGRAM.format(call=call, size=size)
  command = [sys.executable, "-c", program]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  assert (int(result.stdout) < 16) == kept
