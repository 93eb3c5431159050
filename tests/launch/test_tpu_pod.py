"""The real gcloud client, against an API of our own: no test of these can spend money."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys

import pytest

from data_pipeline.records import verify
from launch.gcloud import Gcloud, GcloudError
from launch.gcloud_errors import Kind
from launch.local_pod import free_port
from launch.pods import delete, find
from shortcut_tpu.pod import distributed
from tests.launch.fake_bucket import FakeBucket
from tests.launch.fake_cloud import FakeCloud, tpu_pod
from tests.multihost import pods

pytestmark = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")

POD = ("--config=digits", "--name=pod", "--type=v5litepod-16", "--nopreflight")


@pytest.fixture
def cloud(tmp_path):
    cloud = FakeCloud(tmp_path)
    with cloud.serving():
        yield cloud


def run(cloud: FakeCloud, *arguments: str) -> tuple[int, str]:
    log = cloud.folder / "tpu_pod.log"
    with tpu_pod(cloud, *arguments, log=log) as process:
        try:
            status = process.wait(120)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"too slow:\n{log.read_text()}") from None
    return status, log.read_text()


def last(output: str) -> str:
    return output.strip().splitlines()[-1]


def test_dry_run_shows_commands_that_bash_reads_and_calls_nothing(cloud, tmp_path):
    path = tmp_path / "work dir"
    odd = '--config.data.path=it\'s "here" $HOME'
    status, output = run(
        cloud, *POD, f"--workdir={path}", "--spot", "--dry_run", odd, "--", "--more=a b"
    )
    assert status == 0, output
    assert not cloud.requests
    assert not path.exists()
    assert "tpu-vm create pod --accelerator-type=v5litepod-16" in output
    assert "--version=v2-alpha-tpuv5-lite" in output
    assert "--spot" in output
    script = output.partition("with this startup script:\n")[2]
    (line,) = [line for line in script.splitlines() if line.startswith("setsid")]
    # What the script starts, as bash reads it.
    started = line.replace("setsid bash -c 'run \"$@\"' -", "printf '%s\\n'").partition(" >> ")[0]
    words = subprocess.run(["bash", "-c", started], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == [
        *("-m", "launch.supervisor", "--run=us-x1-a/pod", "--", "-m", "shortcut_tpu.train"),
        "--config=configs/digits.py",
        odd,
        f"--workdir={path}",
        "--more=a b",
    ]
    if shutil.which("shellcheck"):
        checked = subprocess.run(
            ["shellcheck", "--exclude=SC2016", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout


def test_the_queue_is_waited_for_and_the_run_started(cloud, tmp_path):
    cloud.waits = 2
    cloud.boots = True
    # The run ends at once: this worker's Python is `true`.
    cloud.environment = lambda worker: {"SHORTCUT_TPU_PYTHON": shutil.which("true")}
    pod = [argument for argument in POD if argument != "--nopreflight"]
    arguments = ["--queued", "--spot", "--poll_seconds=0.1"]
    if importlib.util.find_spec("libtpu") is None:
        arguments.append("--nopreflight")
    else:
        # The step is compiled for the pod first; the smaller it is, the sooner.
        arguments += ["--config.model.depth=1", "--config.model.width=16"]
        arguments += ["--config.model.num_heads=1", "--config.evaluation.every_steps=0"]
    status, output = run(cloud, *pod, *arguments, f"--workdir={tmp_path / 'run'}")
    assert status == 0, output
    if "--nopreflight" not in arguments:
        assert "v5litepod-16, 16 chips" in output.partition("creating pod")[0]
    assert "creating pod: v5litepod-16 in us-x1-a\npod: WAITING_FOR_RESOURCES\n" in output
    (body,) = cloud.bodies
    assert "spot" in body
    (spec,) = body["tpu"]["nodeSpec"]
    assert spec["nodeId"] == "pod"
    assert spec["node"]["acceleratorType"] == "v5litepod-16"
    assert list((tmp_path / "run" / "code").glob("*.tar.gz"))
    # That it was made by the queue is found, and not told.
    assert run(cloud, "--name=pod", "--status") == (0, "pod READY\nrun 0\n")
    status, output = run(cloud, "--name=pod", "--delete")
    assert status == 0, output
    assert not cloud.queue
    assert not cloud.nodes


def test_other_jobs_on_a_pod(cloud, tmp_path):
    arguments = [argument for argument in POD if not argument.startswith("--config")]
    workdir = tmp_path / "run"
    for job, command in (
        ("evaluate", f"-m shortcut_tpu.evaluate --workdir={workdir} --steps=1,4"),
        ("generate_pairs", f"-m shortcut_tpu.generate_pairs --workdir={workdir} --steps=1,4"),
        ("encode_latents", "-m data_pipeline.encode_latents --steps=1,4"),
    ):
        status, output = run(
            cloud,
            *arguments,
            f"--workdir={workdir}",
            f"--job={job}",
            "--dry_run",
            "--",
            "--steps=1,4",
        )
        assert status == 0, output
        assert f"-m launch.supervisor --run=us-x1-a/pod -- {command} >> " in output
        assert "shortcut_tpu.preflight" not in output


def test_a_pod_is_measured(cloud, tmp_path):
    """With the config of the run, and nothing of its workdir but the code."""
    status, output = run(
        cloud,
        *POD,
        f"--workdir={tmp_path / 'run'}",
        "--job=measure",
        "--dry_run",
        "--",
        "--steps=8",
    )
    assert status == 0, output
    command = "-m shortcut_tpu.measure --config=configs/digits.py --steps=8"
    assert f"-m launch.supervisor --run=us-x1-a/pod -- {command} >> " in output


def test_images_are_encoded_on_a_worker(cloud, tmp_path):
    cloud.boots = True
    cloud.environment = lambda worker: {
        **pods.cpu_environment(tmp_path / "cache"),
        "SHORTCUT_TPU_PYTHON": sys.executable,
    }
    pod = [argument for argument in POD if not argument.startswith("--config")]
    output = tmp_path / "digits"
    arguments = [f"--workdir={tmp_path / 'run'}", "--poll_seconds=0.1", "--job=encode_latents"]
    status, said = run(cloud, *pod, *arguments, "--", "--source=digits", f"--output={output}")
    assert status == 0, said
    assert verify(output).num_records == 1797
    assert "encoded 1797 of 1797 records" in said
    assert "tensorboard" not in said


def test_a_run_on_a_pod_that_is_up_is_started_over_ssh_and_stopped(cloud, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        """#!/bin/bash
trap 'echo saved; exit 143' TERM
echo "started: $*"
for _ in {1..600}; do sleep 0.1; done
"""
    )
    python.chmod(0o755)
    cloud.environment = lambda worker: {"SHORTCUT_TPU_PYTHON": str(python)}
    # Up, and nothing has run on it yet.
    cloud.handle("POST", "/v2/projects/p/locations/us-x1-a/nodes?nodeId=pod", {"metadata": {}})
    cloud.make_home(0)
    log = tmp_path / "session.log"
    arguments = [*POD, f"--workdir={tmp_path / 'run'}", "--poll_seconds=0.1", "--", "--more=it's"]
    with tpu_pod(cloud, *arguments, log=log) as session:
        pods.until(lambda: "started: " in log.read_text(), session, log)
        status, output = run(cloud, "--name=pod", "--stop")
        assert status == 0, output
        assert pods.ended(session, log) == 1
    text = log.read_text()
    assert "pod is up: starting the run on its workers\n" in text
    assert f"--workdir={tmp_path / 'run'} --more=it's\n" in text
    assert "saved\n" in text
    assert last(text) == "error: the run ended with status 143; its log is above"


def test_a_step_that_does_not_fit_costs_nothing(cloud, tmp_path):
    pytest.importorskip("libtpu", reason="preflight needs the TPU compiler")
    arguments = [argument for argument in POD if argument != "--nopreflight"]
    status, output = run(
        cloud, *arguments, f"--workdir={tmp_path / 'run'}", "--config.batch_size=30"
    )
    assert status == 1
    assert last(output).startswith("error: ")
    assert "batch sizes that can" in last(output)
    assert not cloud.requests
    assert not (tmp_path / "run").exists()


def test_slices_are_asked_for_together(cloud, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    status, output = run(cloud, *POD, workdir, "--slices=2")
    assert (status, last(output)) == (
        1,
        "error: --slices needs --queued: only the queue gives several slices at once",
    )
    pod = [argument for argument in POD if argument != "--nopreflight"]
    status, output = run(cloud, *pod, workdir, "--slices=2", "--queued", "--dry_run")
    assert status == 0
    assert "'--topology=2x v5litepod-16'" in output
    assert "queued-resources create pod --node-count=2 --node-prefix=pod" in output


@pytest.fixture
def client(cloud, monkeypatch):
    """The real client in this process, which reaches the cloud of the test."""
    for name, value in cloud.gcloud_environment().items():
        monkeypatch.setenv(name, value)
    return lambda **options: Gcloud("us-x1-a", pause_seconds=0.01, **options)


def test_slices_and_queues_of_any_name_are_found(cloud, client):
    many = {"multisliceParams": {"nodeCount": 2, "nodeIdPrefix": "pod"}, "node": {}}
    cloud.queue["pod"] = {"body": {"tpu": {"nodeSpec": [many]}}, "looks": 0}
    found = find(client(), "pod")
    assert (found.state, found.nodes, found.queued) == ("READY", ("pod-0", "pod-1"), "pod")
    delete(client(), found)
    assert not cloud.queue and not cloud.nodes

    one = {"nodeId": "single", "node": {}}
    cloud.queue["other"] = {"body": {"tpu": {"nodeSpec": [one]}}, "looks": 0}
    cloud.handle("GET", "/v2/projects/p/locations/us-x1-a/queuedResources/other", {})
    found = find(client(), "single")
    assert (found.state, found.nodes, found.queued) == ("READY", ("single",), "other")


BUSY = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Too Many Requests"}}


def test_calls_that_fail_in_passing_are_made_again_and_others_are_understood(
    cloud, client, tmp_path, capsys
):
    cloud.faults = [("GET .*/nodes/pod", 429, BUSY)]
    assert client().node("pod") is None
    assert not cloud.faults
    assert capsys.readouterr().out == (
        "gcloud: RESOURCE_EXHAUSTED: Too Many Requests; trying again in 0.01 s\n"
    )
    cloud.operation_error = (8, 'There is no more capacity in the zone "us-x1-a"')
    script = tmp_path / "script"
    script.touch()
    with pytest.raises(GcloudError, match="There is no more capacity .* --queued") as error:
        client().call(client().create_node("pod", "v5litepod-16", "v", script, spot=True))
    assert error.value.kind is Kind.CAPACITY


def test_gclouds_own_flags_are_handed_on(cloud, client, tmp_path):
    script = tmp_path / "script"
    script.write_text("boot")
    mine = [
        "--internal-ips",
        "--network=n",
        "--labels=team=x,run=y",
        "--reserved",
        "--version=mine",
    ]
    ours = client(create_flags=mine)
    ours.call(ours.create_node("pod", "v5litepod-16", "v", script, spot=False))
    (body,) = cloud.bodies
    assert body["networkConfig"]["network"].endswith("n")
    assert not body["networkConfig"].get("enableExternalIps")
    assert body["labels"] == {"team": "x", "run": "y"}
    assert body["schedulingConfig"]["reserved"]
    assert body["runtimeVersion"] == "mine"
    assert body["metadata"] == {"startup-script": "boot"}
    # The client's own refusal, before anything is made.
    cloud.requests.clear()
    tunnel = ["--tunnel-through-iap"]
    with pytest.raises(GcloudError, match="gcloud alpha compute tpus tpu-vm ssh --tunnel-through"):
        client(ssh_flags=tunnel).refuse_wrong_ssh_flags("pod")
    assert not cloud.requests
    client(ssh_flags=tunnel, track="alpha").refuse_wrong_ssh_flags("pod")
    status, output = run(cloud, "--name=pod", f"--ssh_flags={tunnel[0]}", "--dry_run", "--logs")
    assert status == 0
    assert output.startswith("gcloud compute tpus tpu-vm ssh pod --worker=0")
    assert tunnel[0] in output


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "PERMISSION_DENIED", "not yours"), "roles/tpu.admin"),
        ((429, "RESOURCE_EXHAUSTED", "Quota limit exceeded"), "ask for quota"),
    ],
)
def test_refusals_end_in_one_clear_line(cloud, tmp_path, refusal, said):
    cloud.refuse = refusal
    status, output = run(cloud, *POD, f"--workdir={tmp_path / 'run'}")
    assert status == 1
    assert last(output).startswith("error: gcloud: ")
    assert refusal[2] in last(output)
    assert said in last(output)
    assert "Traceback" not in output


def test_a_pod_that_is_not_there(cloud):
    for flag in ("--status", "--delete"):
        status, output = run(cloud, "--name=pod", flag)
        assert (status, output) == (1, "error: --name=pod: no such pod in us-x1-a\n")


@pytest.mark.parametrize("name", ["-x", "a B", "x" * 60])
def test_names_that_gcloud_would_refuse(cloud, name):
    status, output = run(cloud, f"--name={name}", "--status")
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith(f"error: --name={name}: ")
    assert not cloud.requests


@pytest.mark.pods
def test_a_whole_session_trains_on_four_workers_loses_one_is_preempted_and_finishes(tmp_path):
    """The workdir is in a bucket, as it has to be on a pod."""
    bucket = FakeBucket(tmp_path)
    cloud = FakeCloud(tmp_path, workers=4, environment=bucket.environment())
    cloud.boots = True
    pods.make_records(tmp_path / "digits")
    port = free_port()
    cloud.environment = lambda worker: {
        **pods.cpu_environment(tmp_path / "cache"),
        "SHORTCUT_TPU_PYTHON": sys.executable,
        distributed.COORDINATOR: f"localhost:{port}",
        distributed.NUM_PROCESSES: "4",
        distributed.PROCESS_ID: str(worker),
    }
    workdir, log = "gs://bucket/run", tmp_path / "session.log"
    arguments = [
        *("--config=tests/multihost/tiny_config.py", "--name=pod", "--type=v5litepod-16"),
        *(f"--workdir={workdir}", "--poll_seconds=0.5", "--spot", "--nopreflight"),
        f"--config.data.path={tmp_path / 'digits'}",
    ]
    with (
        bucket.serving(),
        cloud.serving(),
        tpu_pod(cloud, *arguments, log=log) as session,
    ):
        pods.until(lambda: f"{workdir}/checksums/4.json" in bucket.names(), session, log)
        (training,) = pods.children(cloud.pid(2))
        os.kill(training, signal.SIGKILL)
        pods.until(lambda: "resumed from step" in log.read_text(), session, log)
        pods.until(lambda: f"{workdir}/checksums/8.json" in bucket.names(), session, log)
        cloud.preempt("pod")
        pods.until(
            lambda: "pod was preempted; deleting what is left" in log.read_text(), session, log
        )
        assert pods.ended(session, log) == 0, log.read_text()
    text = log.read_text()
    assert text.count("creating pod: v5litepod-16 in us-x1-a") == 2
    assert text.count("resumed from step") == 2
    assert "step 16/16" in text
    assert "was held by" not in text
    here = tmp_path / "run"
    bucket.download(workdir, here)
    assert not (here / "lease.json").exists()
    assert pods.checkpoint_steps(here)[-1] == 16
    losses = pods.logged(here, "train/loss")
    assert sorted(losses) == list(range(1, 17))
    # A step that was made again was the same step.
    assert all(len(values) == 1 for values in losses.values())
