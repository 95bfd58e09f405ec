"""Traces a few steps of a run with JAX's profiler."""

import pathlib
import tempfile

import jax
from absl import logging
from etils import epath

WARM_UP = 10  # First steps, which compile or fill the queues of batches.


class StepProfile:
  """A trace of some steps, and a profile of the memory in use after them.

  Every process writes files of its own, named by its number, to
  WORKDIR/plugins/profile/steps_FIRST-LAST, where TensorBoard looks for them:

    process_N.xplane.pb       for TensorBoard and xprof
    process_N.trace.json.gz   for ui.perfetto.dev
    process_N.memory.prof     for pprof: arrays that are kept between steps

  Attributes:
    start: number of steps before the first traced one.
  """

  def __init__(self, workdir: epath.PathLike, start_step: int, num_steps: int):
    """Plans a trace.

    Args:
      workdir: workdir of the run, local or a URL.
      start_step: where the run starts or resumes; the trace begins `WARM_UP`
        steps later.
      num_steps: number of steps to trace; 0 for none. A checkpoint or an
        evaluation ends the trace early.
    """
    self.start = start_step + WARM_UP if num_steps else -1
    self._end, self._is_missing = self.start + num_steps, num_steps > 0
    self._folder = epath.Path(workdir) / "plugins" / "profile"
    self._trace: tempfile.TemporaryDirectory | None = None

  def is_over(self, step: int, pausing: bool) -> bool:
    """Whether the trace ends after a step; `pausing` if a pause follows it."""
    return self._trace is not None and (pausing or step == self._end)

  def begin(self) -> None:
    """Begins the trace once the devices have finished all earlier steps."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # It slows down what it measures.
    self._is_missing = False
    # XLA writes local files only.
    self._trace = tempfile.TemporaryDirectory(prefix="profile-")
    jax.profiler.start_trace(self._trace.name, profiler_options=options)

  def end(self, step: int) -> None:
    """Writes the trace once the devices have finished `step`."""
    assert self._trace is not None
    with self._trace as name:
      jax.profiler.stop_trace()
      local = pathlib.Path(name)
      jax.profiler.save_device_memory_profile(str(local / "host.memory.prof"))
      folder = self._folder / f"steps_{self.start + 1}-{step}"
      folder.mkdir(parents=True, exist_ok=True)
      for kind in ("xplane.pb", "trace.json.gz", "memory.prof"):
        for path in local.rglob(f"*.{kind}"):
          file = folder / f"process_{jax.process_index()}.{kind}"
          file.write_bytes(path.read_bytes())
    self._trace = None
    logging.info("profile of steps %d to %d: %s", self.start + 1, step, folder)

  def close(self) -> None:
    """Drops a trace that an error cut short; warns if no trace was begun."""
    if self._is_missing:
      logging.warning(
        "nothing was profiled: the run ended before step %d.", self.start + 1
      )
    if self._trace is not None:
      jax.profiler.stop_trace()
      self._trace.cleanup()


NO_PROFILE = StepProfile("", 0, 0)
