"""The JobSet says what the topology needs, and the XPK command what the JobSet says."""

import json
import os
from pathlib import Path
import shlex
import subprocess
import sys
import tomllib

import jsonschema
import pytest
import yaml

from data_pipeline import exit_reason
from launch.gke.jobset import Run, render
from shortcut_tpu.pod.topologies import Topology

ROOT = Path(__file__).parents[2]
RUN = (
    "--config=imagenet256_xl",
    "--name=xl",
    "--type=v5litepod-256",
    "--image=image:1",
    "--workdir=gs://bucket/run",
    "--slices=2",
    "--config.data.path=gs://bucket/it's here",
    "--config.evaluation.every_steps=0",
)
TRAIN = [
    *("python", "-m", "launch.supervisor", "--run=xl", "--max_restarts=3"),
    *("--grace_seconds=570", "--"),
    *("-m", "shortcut_tpu.train", "--config=configs/imagenet256_xl.py"),
    *("--config.data.path=gs://bucket/it's here", "--config.evaluation.every_steps=0"),
    "--workdir=gs://bucket/run",
]


def gke(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.gke", "--nopreflight", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check_schema(jobset: dict) -> None:
    """Raises unless JobSet's own definition allows it (golden/make_jobset_schema.py)."""
    schema = json.loads((ROOT / "tests" / "golden" / "jobset_schema.json").read_text())
    jsonschema.validate(jobset, schema)


def test_the_jobset_of_two_slices():
    printed = gke(*RUN)
    assert printed.returncode == 0, printed.stderr
    jobset = yaml.safe_load(printed.stdout)
    check_schema(jobset)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 50
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (64, 64, 0)
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 600
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == TRAIN
    # libtpu opens the chips' device files; of the node's own files the container sees none.
    assert container["securityContext"] == {"privileged": True}
    assert pod["volumes"] == [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]
    assert not {"env", "envFrom", "serviceAccountName"} & {*container, *pod}


def test_the_xpk_command_runs_the_same():
    printed = gke(*RUN, "--cluster=c", "--zone=us-x1-a")
    assert printed.returncode == 0, printed.stderr
    words = shlex.split(printed.stdout)
    assert words[:3] == ["xpk", "workload", "create"]
    given = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    assert shlex.split(given.pop("command")) == TRAIN
    assert given == {
        "workload": "xl",
        "cluster": "c",
        "zone": "us-x1-a",
        "tpu-type": "v5litepod-256",
        "num-slices": "2",
        "docker-image": "image:1",
        "max-restarts": "50",
        "termination-grace-period-seconds": "600",
        "restart-on-exit-codes": "1",
    }
    # XPK's own rule, of its documentation: it starts again what ends with one of these.
    again = {42, *range(127, 256), int(given["restart-on-exit-codes"])}
    assert {exit_reason.GAVE_UP_STATUS, exit_reason.STOPPED_STATUS, 128 + 9} <= again
    assert exit_reason.REFUSED_STATUS not in again


def action(jobset: dict, status: int, disrupted: bool) -> str:
    """What becomes of the run when a pod ends, by the rules of Job and JobSet: the first that fits.

    A Job without a fitting rule fails as its backoffLimit is 0, a JobSet's is then restarted.
    """
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {"operator": "In", "values": []})
        assert codes["operator"] == "In"
        fits = status in codes["values"] or (
            disrupted
            and {"type": "DisruptionTarget", "status": "True"} in rule.get("onPodConditions", [])
        )
        if fits and rule["action"] == "Ignore":
            return "made again"
        if fits:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    rules = jobset["spec"]["failurePolicy"]["rules"]
    fitting = [rule["action"] for rule in rules if reason in rule["onJobFailureReasons"]]
    return (fitting or ["RestartJobSet"])[0]


def test_what_ends_a_pod_decides_what_becomes_of_the_run():
    jobset = render(Run("x", "image", Topology.parse("v5e-16"), []))
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (named,) = [
        rule["onExitCodes"]["containerName"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert named == container["name"]
    # Kubernetes takes such a policy only here.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert action(jobset, exit_reason.GAVE_UP_STATUS, disrupted=False) == "RestartJobSet"
    assert action(jobset, 137, disrupted=False) == "RestartJobSet"
    for status in (exit_reason.STOPPED_STATUS, 137):
        assert action(jobset, status, disrupted=True) == "made again"
    assert action(jobset, exit_reason.REFUSED_STATUS, disrupted=False) == "FailJobSet"


def test_the_schema_would_notice():
    jobset = render(Run("x", "image", Topology.parse("v5e-16"), []))
    for key, value in (("replicas", -1), ("replicas", "2"), ("unknown", 1)):
        broken = json.loads(json.dumps(jobset))
        broken["spec"]["replicatedJobs"][0][key] = value
        with pytest.raises(jsonschema.ValidationError):
            check_schema(broken)


def test_other_jobs():
    arguments = [argument for argument in RUN if not argument.startswith("--config")]
    printed = gke(*arguments, "--job=evaluate", "--", "--steps=1,4", "--json=it's.json")
    assert printed.returncode == 0, printed.stderr
    jobset = yaml.safe_load(printed.stdout)
    check_schema(jobset)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"][7:] == [
        *("-m", "shortcut_tpu.evaluate", "--workdir=gs://bucket/run"),
        *("--steps=1,4", "--json=it's.json"),
    ]


@pytest.mark.parametrize(
    ("name", "topology", "vms", "chips"),
    [
        ("v4-64", "2x4x4", 8, 4),
        ("v5p-128", "4x4x4", 16, 4),
        ("v5litepod-8", "2x4", 1, 8),
        ("v5litepod-16", "4x4", 4, 4),
        ("v6e-256", "16x16", 64, 4),
        ("v6e-1", "1x1", 1, 1),
    ],
)
def test_vms_and_chips(name, topology, vms, chips):
    jobset = render(Run("x", "image", Topology.parse(name), []))
    check_schema(jobset)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == vms
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--name=Not_A_Name", "error: --name=Not_A_Name: at most 40 lower-case letters"),
        ("--type=v9-4", "error: --topology=v9-4: not one of"),
        ("--type=2x v5e-16", "error: --type=2x v5e-16: the type of one slice; --slices says"),
        ("--image=", "error: --image is missing: "),
    ],
)
def test_mistakes_end_in_one_line(argument, said):
    flag = argument.partition("=")[0]
    printed = gke(*(one for one in RUN if not one.startswith(f"{flag}=")), argument)
    assert printed.returncode == 1
    assert printed.stderr.startswith(said)
    assert printed.stderr.count("\n") == 1


def test_a_run_that_does_not_fit_is_not_printed():
    """What cannot be evaluated on the pod's hosts ends here: `kubectl` reads nothing."""
    pytest.importorskip("libtpu", reason="preflight needs the TPU compiler")
    large = ("data.image_size=256", "data.channels=3", "model.patch_size=64")
    run = ("--config=digits", "--name=xl", "--type=v5litepod-16", "--image=i", "--workdir=gs://b/r")
    printed = subprocess.run(
        [sys.executable, "-m", "launch.gke", *run, *(f"--config.{one}" for one in large)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (printed.returncode, printed.stdout) == (1, "")
    assert "evaluation.protocol=fd_pixel" in printed.stderr.splitlines()[-1]


def test_the_images_dockerfile_names_what_is_here():
    """Known instructions, files that are in the repository, and an extra that the package has."""
    lines = (ROOT / "launch" / "gke" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    assert steps[0][0] == "FROM"
    assert {step[0] for step in steps} <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}
    copied = [source for step in steps if step[0] == "COPY" for source in step[1:-1]]
    assert copied and all(source == "." or list(ROOT.glob(source)) for source in copied)
    (extra,) = [w.split("[")[1].rstrip('"]') for s in steps if s[0] == "RUN" for w in s if "[" in w]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
