"""One run on one, two and four hosts: the same batches, the same noises, the same losses."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from launch.local_pod import run_on_hosts

_STEPS = 20


def run(digits_path, output, hosts, chips_per_host):
    output.mkdir()
    arguments = ("tests.multihost.worker", str(digits_path), str(output), str(_STEPS))
    run_on_hosts(arguments, hosts, chips_per_host, output / "logs")
    parts = [np.load(output / f"host-{host}.npz") for host in range(hosts)]
    spans = [tuple(part["rows"]) for part in parts]
    share = 32 // hosts
    assert spans == [(host * share, (host + 1) * share) for host in range(hosts)]
    whole = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("images", "labels", "noises")
    }
    for part in parts[1:]:
        np.testing.assert_array_equal(part["losses"], parts[0]["losses"])
    return whole | {"losses": parts[0]["losses"]}


def test_hosts_change_nothing(digits_path, tmp_path, monkeypatch):
    """Rows to the last bit; the losses of 20 steps to 1e-5, for sums may be ordered otherwise."""
    # Seven processes compile here; what they compute is the same.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    one = run(digits_path, tmp_path / "1", 1, 4)
    assert one["images"].shape == (32, _STEPS, 8, 8, 1)
    assert len(np.unique(one["noises"])) > 0.99 * one["noises"].size
    for hosts, chips in ((2, 2), (4, 1)):
        many = run(digits_path, tmp_path / str(hosts), hosts, chips)
        for name in ("images", "labels", "noises"):
            assert one[name].tobytes() == many[name].tobytes(), (name, hosts)
        np.testing.assert_allclose(one["losses"], many["losses"], rtol=1e-5)


def test_a_failing_host_ends_all_and_is_named(tmp_path):
    """The others wait in a collective for ever; the launcher ends them and says what happened."""
    arguments = ("tests.multihost.worker", str(tmp_path / "nowhere"), str(tmp_path), "1")
    with pytest.raises(UserError, match=r"worker on host \d ended with status 1: .*manifest.json"):
        run_on_hosts(arguments, 2, 1, tmp_path / "logs")
