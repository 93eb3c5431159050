"""Computes the `perf/` scalars of a log interval.

Usage, on every process:
  speed = Speed(clock, step, batch_size, model_flops, mesh)
  scalars = speed.interval(step)
"""

from jax.sharding import Mesh

from shortcut_tpu.observability import stragglers
from shortcut_tpu.observability.clock import CHECKPOINT, INPUT, STEP, Clock
from shortcut_tpu.pod.topologies import chip_of


class Speed:
    """What has happened since the last log interval."""

    def __init__(
        self,
        clock: Clock,
        step: int,
        batch_size: int,
        model_flops: int,
        mesh: Mesh,
    ):
        """Begins the first interval.

        Args:
          clock: of this process.
          step: the last that is done.
          batch_size: rows a step, over all hosts.
          model_flops: of a step on all devices; see `Experiment.model_flops`.
          mesh: all devices, of one kind.
        """
        self._clock = clock
        self._batch_size = batch_size
        self._model_flops = model_flops
        self._mesh = mesh
        self._step = step
        self._before = clock.read()

    def interval(self, step: int) -> dict[str, float]:
        """The scalars of the steps since the last call; the devices must be through with them.

        A step's time is that of the step and of its input. Compiling the first one, saves and
        evaluations are apart.
        """
        now = self._clock.read()
        spent, steps = now.since(self._before), step - self._step
        self._before, self._step = now, step
        seconds = (spent.wall[STEP] + spent.wall[INPUT]) / steps
        busy = (spent.cpu[STEP] + spent.wall[INPUT]) / steps
        return {
            "perf/step_seconds": seconds,
            "perf/images_per_second": self._batch_size / seconds,
            "perf/input_wait": spent.wall[INPUT] / steps / seconds,
            "perf/checkpoint_block_seconds": spent.wall[CHECKPOINT],
            **utilisation(
                self._model_flops / seconds,
                self._mesh.size,
                self._mesh.devices.flat[0].device_kind,
            ),
            **stragglers.spread(busy, seconds),
        }


def utilisation(flops_per_second: float, devices: int, device_kind: str) -> dict[str, float]:
    """Model FLOPs a second of all devices, and their share of the published bfloat16 peaks.

    The peak is that of bfloat16 products whatever a run computes in. Devices without a published
    peak, such as processors, have no `perf/mfu`.
    """
    scalars = {"perf/model_tflops_per_second": flops_per_second / 1e12}
    chip = chip_of(device_kind)
    if chip is not None:
        scalars["perf/mfu"] = flops_per_second / (devices * chip.bf16_flops)
    return scalars
