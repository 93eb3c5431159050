"""A profile is of the steps that were asked for, in the folder where XProf looks."""

from etils import epath
import jax
import jax.numpy as jnp
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.observability.profiling import Profiler, StepRange, step_marker


def marked_steps(path):
    """The steps that a profile has markers of."""
    [host] = [
        plane
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        if plane.name == "/host:CPU"
    ]
    events = [event for line in host.lines for event in line.events if event.name == "train"]
    return [dict(event.stats)["step_num"] for event in events]


def run(folder, steps, first, last):
    work = jax.jit(lambda x: x @ x / 2)
    x = jnp.eye(64)
    with Profiler(epath.Path(folder), steps) as profiler:
        for step in range(first, last + 1):
            profiler.reached(step, x)
            with step_marker(step):
                x = work(x)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 8, [3, 4, 5]),
        # It goes on from a checkpoint, and ends before the range does.
        (4, 4, [4]),
    ],
)
def test_the_steps_of_the_range_are_in_it(tmp_path, first, last, expected):
    run(tmp_path, StepRange.parse("3:6"), first, last)
    [path] = tmp_path.rglob("*.xplane.pb")
    assert path == tmp_path / "plugins" / "profile" / "steps_3_6" / "host_0.xplane.pb"
    assert marked_steps(path) == expected


def test_nothing_is_written_without_a_step_of_the_range(tmp_path):
    run(tmp_path, StepRange.parse("3:6"), 6, 8)
    run(tmp_path, None, 1, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["5", "5:5", "7:5", "0:5", "a:b", "-1:4", "1:2:3"])
def test_other_ranges_are_refused(text):
    with pytest.raises(UserError, match=f"--profile_steps={text}: not START:STOP"):
        StepRange.parse(text)
