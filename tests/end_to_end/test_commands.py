"""Commands as a user types them: the whole job once, and everything that can be mistyped."""

import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from launch.local_pod import host_environment
from shortcut_tpu.evaluation.distances import Gaussian, frechet_distance
from shortcut_tpu.observability.dashboard import charts
from tests.end_to_end.forks import forked_commands

TINY = (
    "--config.batch_size=32",
    "--config.model.width=16",
    "--config.model.depth=2",
    "--config.model.num_heads=2",
    "--config.model.unroll=1",
    "--config.train.num_steps=20",
    "--config.optimizer.warmup_steps=5",
    "--config.train.log_every_steps=10",
    "--config.evaluation.steps=(1,2)",
    "--config.evaluation.num_samples=100",
    "--config.evaluation.batch_size=100",
)


def typed(module, *arguments, timeout=600):
    """Runs a command in a process of its own to its end, or ends it with all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=host_environment(chips_per_host=1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        umask=0o027,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs a command to its end; gives its status and what it printed."""
    with forked_commands(tmp_path_factory.mktemp("here")) as run:
        yield lambda module, *arguments: run(module, arguments)


def picture_size(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A small job through the rehearsed pod, records included, in a folder with an odd name."""
    folder = tmp_path_factory.mktemp("a jöb\n$(x)'s")
    # What stands in a config is of one line.
    records = tmp_path_factory.mktemp("rec örds") / "records"
    done = typed(
        "launch.local_pod",
        "--config=digits",
        f"--workdir={folder / 'run'}",
        f"--json={folder / 'distances.json'}",
        f"--config.data.path={records}",
        *TINY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, records, done


def test_local_pod_does_the_whole_job(job):
    folder, _, done = job
    assert "2 processes, 2 cpu devices (data 2, fsdp 1, stride 1, tensor 1)" in done.stdout
    assert "step 20/20 100%" in done.stdout
    # Libraries' greetings are in the logs; what the run has made is named last, the picture first.
    assert "Gloo" not in done.stdout + done.stderr
    assert "Gloo" in (folder / "run" / "logs" / "train-host-0.log").read_text()
    assert f"\npicture      {folder / 'run' / 'samples.png'}\nscores  " in done.stdout
    assert done.stderr == ""
    # Both hosts encoded, though the digits are one shard, which is the first one's.
    assert "encoded 1797 of 1797 records in 1 shard(s)" in done.stdout
    log = folder / "run" / "logs" / "encode_latents-host-1.log"
    assert "already complete, 1797 records" in log.read_text()
    assert f"tensorboard --logdir={folder / 'run'}" in done.stdout
    assert (folder / "run" / "checkpoints" / "20").is_dir()
    assert list((folder / "run").glob("events.out.tfevents.*"))
    width, height = picture_size(folder / "run" / "samples.png")
    # The samples, real images and the figure, and what is written left of and above them.
    assert height == 30 * 66 + 2 + 2 * 17 and width > 14 * 66 + 480
    figures = json.loads((folder / "distances.json").read_text())
    assert figures["metric"] == "fd_pixel"
    assert figures["num_samples"] == 100
    assert [int(n) for n in figures["distances"]] == [1, 4, 32, 128]
    # The table on the console is the file's.
    assert f"{figures['distances']['4']:.4g}" in done.stdout


def test_all_that_a_job_writes_has_the_rights_that_the_umask_gives(job):
    """Here it keeps others out, and what a run leaves is nobody else's either."""
    folder, records, _ = job
    written = [*folder.rglob("*"), *records.rglob("*")]
    rights = {path: path.stat().st_mode & 0o777 for path in written}
    assert len(written) > 50
    assert {rights[path] for path in written if path.is_dir()} == {0o750}
    assert {rights[path] for path in written if path.is_file()} == {0o640}


def test_tensorboard_has_curves_samples_and_the_config(job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, _ = job
    events = EventAccumulator(str(folder / "run"), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    expected = {
        "train/loss",
        "train/loss_flow",
        "train/loss_bootstrap",
        "train/loss_level_0",
        "train/update_norm",
        "train/ema_distance_target",
        "train/learning_rate",
        "perf/images_per_second",
        "perf/input_wait",
        "eval/fd_pixel@1",
        "eval/fd_pixel@2",
        "eval/fd_pixel_over_steps",
        "samples/1_steps",
        "samples/same_noises",
        "config",
        "parameters",
        "_hparams_/session_start_info",
        "custom_scalars__config__",
    }
    assert expected <= tags
    # No chart of the custom scalars is empty.
    for _, found in charts(["fd_pixel"]):
        for title, pattern in found.items():
            assert any(re.fullmatch(pattern, tag) for tag in tags), title


def test_evaluate_scores_the_checkpoint_that_is_asked_for(job, command, tmp_path):
    folder, _, _ = job
    arguments = (f"--workdir={folder / 'run'}", "--steps=1,4", "--num_samples=100")
    status, said = command(
        "shortcut_tpu.evaluate", *arguments, f"--json={tmp_path / 'scores.json'}"
    )
    assert status == 0, said
    figures = json.loads((tmp_path / "scores.json").read_text())
    before = json.loads((folder / "distances.json").read_text())
    # One device here, two hosts there: the sums agree to far more than the fourth digit.
    for n in ("1", "4"):
        assert figures["distances"][n] == pytest.approx(before["distances"][n], rel=1e-5)
    assert figures["step"] == 20
    status, said = command("shortcut_tpu.evaluate", *arguments, "--step=7")
    assert status == 1
    assert said.splitlines()[-1].endswith("no checkpoint of step 7, only of 20")
    _, said = command("shortcut_tpu.evaluate", *arguments, "--ema=slow")
    assert "--ema=slow is none of this run's evaluation, target" in said


def test_evaluate_by_several_protocols_gives_fdr(job, command, tmp_path):
    """Each distance over that of other real images to its reference, and the mean of the ratios."""
    folder, _, _ = job
    rng, moments = np.random.default_rng(0), {}
    for name in ("first", "second", "other"):
        factor = rng.normal(size=(64, 64)) / 8
        moments[name] = Gaussian(rng.normal(size=64), factor @ factor.T)
        np.savez(tmp_path / name, mu=moments[name].mean, sigma=moments[name].covariance)
    first, second, other = (f"{tmp_path / name}.npz" for name in moments)
    arguments = (f"--workdir={folder / 'run'}", "--steps=1", "--num_samples=100")
    arguments += ("--protocol=fd_pixel,fd_pixel", f"--reference={first},{second}")
    file = tmp_path / "scores.json"
    status, said = command(
        "shortcut_tpu.evaluate", *arguments, f"--held_out={other},{other}", f"--json={file}"
    )
    assert status == 0, said
    figures = json.loads(file.read_text())
    ratios = [
        result["distances"]["1"] / frechet_distance(moments["other"], moments[name])
        for name, result in zip(("first", "second"), figures["protocols"], strict=True)
    ]
    assert [result["fdr"]["1"] for result in figures["protocols"]] == pytest.approx(ratios)
    assert figures["fdr"]["1"] == pytest.approx(sum(ratios) / 2)
    assert "FDr over fd_pixel, fd_pixel" in said
    status, said = command("shortcut_tpu.evaluate", *arguments, f"--held_out={other}")
    assert status == 1
    assert "1 for 2 protocols; give one for each, comma-separated" in said.splitlines()[-1]
    status, said = command("shortcut_tpu.evaluate", *arguments, f"--held_out={first},{other}")
    assert status == 1
    assert f"--held_out={first}: no distance from the reference" in said.splitlines()[-1]


def test_sample_draws_what_is_asked_for(job, command, tmp_path):
    folder, _, _ = job
    output = tmp_path / "sheet.png"
    status, said = command(
        "shortcut_tpu.sample",
        f"--workdir={folder / 'run'}",
        "--steps=1,4",
        "--labels=3,7",
        "--columns=5",
        f"--output={output}",
    )
    assert status == 0, said
    # The figure of the distances is higher than two labels by two step counts of 64 pixels.
    width, height = picture_size(output)
    assert height == 336 > 4 * 66 and width > 9 * 66 + 480


def test_sample_writes_a_way_between_noises_as_arrays(job, command, tmp_path):
    folder, _, _ = job
    output = tmp_path / "way.npz"
    arguments = ("--interpolate", "--steps=1,3", "--labels=3,null", "--columns=4", "--seed=5")
    status, said = command(
        "shortcut_tpu.sample", f"--workdir={folder / 'run'}", *arguments, f"--output={output}"
    )
    assert status == 0, said
    with np.load(output) as arrays:
        assert arrays["images"].shape == (2, 8, 8, 8, 1)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [3] * 4 + [10] * 4
        assert arrays["steps"].tolist() == [1, 3]
        assert (arrays["seed"], arrays["step"]) == (5, 20)


def test_sample_fills_a_folder_with_what_evaluate_scores(job, command, tmp_path):
    """The PNG files are the bytes of --save_samples, to a step of rounding."""
    folder, _, _ = job
    output, saved = tmp_path / "samples", tmp_path / "saved.npz"
    arguments = (f"--workdir={folder / 'run'}", "--steps=2")
    status, said = command("shortcut_tpu.sample", *arguments, "--num=100", f"--output={output}")
    assert status == 0, said
    status, said = command(
        "shortcut_tpu.evaluate", *arguments, "--num_samples=100", f"--save_samples={saved}"
    )
    assert status == 0, said
    found = np.stack([np.asarray(Image.open(path)) for path in sorted(output.glob("*.png"))])
    with np.load(saved) as arrays:
        expected = arrays["arr_0"][..., 0]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_report_has_what_the_run_logged(job, command, tmp_path):
    folder, _, _ = job
    output = tmp_path / "report.html"
    status, said = command(
        "shortcut_tpu.report", f"--workdir={folder / 'run'}", f"--output={output}"
    )
    assert status == 0, said
    text = output.read_text()
    for tag in ("fd_pixel@1 while training", "loss_level_0", "shares of time", "20 of 20"):
        assert tag in text
    assert text.count("data:image/png;base64,") == 3
    assert json.loads((folder / "run" / "environment.jsonl").read_text())["processes"] == 2


OFFICIAL = (
    "--from=official",
    f"--weights={Path(__file__).parents[1] / 'golden' / 'official_checkpoint.pickle'}",
    "--config=imagenet256_b",
)


def test_convert_makes_a_run_that_the_other_commands_know(command, tmp_path):
    workdir, output = f"--workdir={tmp_path / 'run'}", tmp_path / "samples.npz"
    overrides = (
        *("--config.model.width=12", "--config.model.depth=2", "--config.model.num_heads=3"),
        *("--config.data.channels=2", "--config.data.num_classes=3", "--config.data.image_size=4"),
        "--config.data.autoencoder=identity",
    )
    status, said = command("shortcut_tpu.convert", *OFFICIAL, workdir, *overrides)
    assert status == 0, said
    assert "shortcut, step 1234" in said
    status, said = command("shortcut_tpu.sample", workdir, f"--output={output}", "--columns=2")
    assert status == 0, said
    with np.load(output) as arrays:
        assert arrays["images"].shape == (1, 6, 4, 4, 2)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (
            "shortcut_tpu.convert",
            (*OFFICIAL, "--workdir=w"),
            "the weights are not of this config; give --config.model.width=12",
        ),
        (
            "shortcut_tpu.convert",
            (
                *(*OFFICIAL, "--workdir=w", "--config.model.width=12", "--config.model.depth=2"),
                *("--config.data.channels=2", "--config.data.num_classes=3"),
            ),
            "give --config.model.num_heads=N --config.data.image_size=N; N as they were trained",
        ),
        (
            "shortcut_tpu.evaluate",
            ("--workdir=RUN", "--steps=1", "--steps=2"),
            "--steps is given twice, 1 and 2; only the last would count",
        ),
        (
            "data_pipeline.encode_latents",
            ("--output=o", "--source=webdataset:0.tar", "--source=webdataset:1.tar"),
            "--source is given twice",
        ),
        (
            "launch.local_pod",
            ("--config=digits", "--config.seed=1", "--config.seed=2"),
            "--config.seed is given twice, 1 and 2",
        ),
        ("shortcut_tpu.report", ("--workdir=nowhere",), "nowhere/config.json: no such file"),
        (
            "shortcut_tpu.convert",
            ("--workdir=RUN",),
            "give --from=official|meanflow|imf|dit|sit|safetensors or",
        ),
        (
            "launch.local_pod",
            (
                "--config=digits",
                "--workdir=w",
                "--config.data.path=nowhere",
                "--config.data.source=npz:none",
            ),
            "none: cannot be read: No such file",
        ),
        ("shortcut_tpu.train", ("--workdir=w",), "--config is missing; there are celebahq256_b"),
        ("shortcut_tpu.train", ("--config=digits",), "--workdir is missing"),
        ("shortcut_tpu.train", ("--config=digit", "--workdir=w"), "neither a file"),
        ("shortcut_tpu.train", ("--config=digits", "w"), "unexpected argument 'w'"),
        ("shortcut_tpu.train", ("--config=digits", "--workdr=w"), "Unknown command line flag"),
        (
            "shortcut_tpu.train",
            ("--config=digits", "--workdir=w", "--config.train.num_step=1"),
            "the nearest is --config.train.num_steps",
        ),
        (
            "shortcut_tpu.train",
            ("--config=digits", "--workdir=w", "--config.batch_size=many"),
            "invalid literal for int",
        ),
        (
            "shortcut_tpu.train",
            ("--config=digits", "--workdir=w", "--config.data.path=nowhere"),
            "nowhere/manifest.json: no such file; make the records with",
        ),
        (
            "shortcut_tpu.train",
            (
                "--config=digits",
                "--workdir=w",
                "--config.data.path=RECORDS",
                "--config.data.autoencoder=vae",
            ),
            "unknown autoencoder 'vae'; the known ones are identity, ",
        ),
        (
            "shortcut_tpu.train",
            (
                "--config=digits",
                "--workdir=w",
                "--config.data.path=RECORDS",
                "--config.data.channels=4",
                "--config.data.num_classes=3",
            ),
            "give --config.data.channels=1 --config.data.num_classes=10",
        ),
        (
            "shortcut_tpu.train",
            (
                "--config=digits",
                "--workdir=w",
                "--config.data.path=RECORDS",
                "--config.batch_size=31",
            ),
            "batch sizes that can: 30, 32",
        ),
        (
            "shortcut_tpu.train",
            (
                "--config=digits",
                "--workdir=w",
                "--config.data.path=RECORDS",
                "--config.objective.name=magic",
            ),
            "objective.name='magic': it may be flow_matching, ",
        ),
        ("shortcut_tpu.evaluate", ("--workdir=nowhere",), "nowhere/config.json: no such file"),
        ("shortcut_tpu.evaluate", ("--workdir=RUN", "--steps=1,x"), "--steps=1,x: not positive"),
        ("shortcut_tpu.evaluate", ("--workdir=RUN", "--protocol=fid"), "protocol 'fid' is none of"),
        ("shortcut_tpu.sample", ("--workdir=RUN", "--output=a.jpg"), "must end in .png"),
        (
            "shortcut_tpu.sample",
            ("--workdir=RUN", "--output=a.png", "--labels=1,10"),
            "'10' is not a label in 0 .. 9",
        ),
        ("shortcut_tpu.preflight", ("--config=digits",), "--topology is missing"),
        ("shortcut_tpu.preflight", ("--config=digits", "--topology=v5e"), "not one of v4-N"),
        ("launch.local_pod", ("--config=digits", "--hosts=0"), "--hosts"),
        (
            "data_pipeline.encode_latents",
            ("--source=photos", "--output=o"),
            "unknown source",
        ),
    ],
)
def test_mistakes_end_in_one_clear_line(job, command, module, arguments, message, tmp_path):
    arguments = [a.replace("--workdir=w", f"--workdir={tmp_path}/w") for a in arguments]
    folder, records, _ = job
    names = {"RECORDS": str(records), "RUN": str(folder / "run")}
    for name, path in names.items():
        arguments = tuple(argument.replace(name, path) for argument in arguments)
    status, output = command(module, *arguments)
    assert status == 1, output
    assert "Traceback" not in output
    assert "starting again" not in output
    assert message in output.splitlines()[-1]
