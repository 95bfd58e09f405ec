"""Keeps freed memory in the process, as new pages cost time.

By default glibc returns the memory of every large array to the system, which
clears each page before it gives it out again.
"""

import contextlib
import ctypes

# Names and limits in malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_LARGEST_MMAP_THRESHOLD = 2**25
_NO_LIMIT = 2**31 - 1


def keep_freed_memory(limit: int | None = None) -> None:
  """Keeps memory of this process for its next arrays; glibc only.

  Args:
    limit: bytes to keep at most, of arrays of up to 32 MiB; without it,
      everything is kept, and the process stays as large as it ever was.
  """
  with contextlib.suppress(AttributeError):  # Another C library.
    mallopt = ctypes.CDLL(None).mallopt
    if limit is None:
      mallopt(_MMAP_MAX, 0)
      mallopt(_TOP_PAD, 2**29)
    else:
      mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _NO_LIMIT if limit is None else limit)
