"""What is waited for, how long, and what ends the waiting; by a stand-in for the cloud's client."""

import os
import subprocess

import pytest

from data_pipeline.errors import UserError
from launch import gcloud_errors, pods, tpu_pod, worker_script
from launch.gcloud import Gcloud, GcloudError
from launch.pods import GONE, READY, Maker, find

EMPTY = {"code": 8, "message": "There is no more capacity in the zone"}
QUOTA = {"code": 8, "message": "Quota limit 'TPUV5' has been exceeded"}
DENIED = {"code": 7, "message": "no"}
BROKEN = {"code": 13, "message": "an internal error"}
THERE = {"code": 6, "message": "already exists"}


class Cloud(Gcloud):
    """Creations end as planned: None, or an error; a node that is created is ready."""

    def __init__(self, plan=(), node=None, queue=None):
        super().__init__("z")
        held = {"plan": list(plan), "nodes": {}, "queues": {}, "calls": []}
        for name, value in held.items():
            object.__setattr__(self, name, value)
        if node:
            self.nodes["pod"] = node
        if queue:
            self.queues["pod"] = queue

    def node(self, name):
        return self.nodes.get(name)

    def queued(self, name):
        found = self.queues.get(name)
        if isinstance(found, GcloudError):
            raise found
        return found

    def call(self, command, tries=1):
        self.calls.append(command[3:5] if command[0] == "gcloud" else command)
        if command == ["create"]:
            outcome = self.plan.pop(0) if self.plan else None
            if outcome is not None:
                if outcome is THERE:
                    self.nodes["pod"] = {"state": "READY"}
                raise GcloudError(gcloud_errors.of_status(outcome))
            self.nodes["pod"] = {"state": "READY"}
        elif "delete" in command:
            self.nodes.clear()
            self.queues.clear()
            raise GcloudError(gcloud_errors.of_status({"code": 5, "message": "not found"}))
        return ""


@pytest.fixture
def slept(monkeypatch):
    pauses = []
    monkeypatch.setattr(pods.time, "sleep", pauses.append)
    return pauses


def maker(cloud):
    return Maker(cloud, "pod", ["create"], "v5e in z", 20.0, lambda line: None)


def test_a_pod_that_was_had_is_waited_for_after_growing_pauses(slept):
    cloud = Cloud([EMPTY] * 7, node={"state": "PREEMPTED"})
    found, created = maker(cloud).ready(had=False)
    assert (found.state, created) == (READY, True)
    assert slept == [40, 80, 160, 320, 640, 900, 900]


@pytest.mark.parametrize(
    ("had", "refusal", "waits"),
    [
        (True, EMPTY, True),
        (True, QUOTA, True),  # What was deleted gives it back after a while.
        (True, DENIED, False),
        (False, EMPTY, False),  # Who stands before the screen may choose another zone.
        (False, QUOTA, False),
        (False, BROKEN, True),
    ],
)
def test_only_what_passes_is_waited_for(slept, had, refusal, waits):
    cloud = Cloud([refusal])
    if waits:
        assert maker(cloud).ready(had)[0].state == READY
        assert slept == [40]
    else:
        with pytest.raises(GcloudError, match=refusal["message"]):
            maker(cloud).ready(had)
        assert not slept


def test_a_creation_whose_answer_was_lost_is_found(slept):
    found, created = maker(Cloud([THERE])).ready(had=False)
    assert (found.state, created) == (READY, True)


@pytest.mark.parametrize("status", ["0", "78"])
def test_a_run_is_followed_through_preemptions_to_its_end(slept, monkeypatch, status):
    cloud, followed = Cloud([EMPTY, None], node={"state": "READY"}), []

    def follow(cloud, found):
        followed.append(found.state)
        if len(followed) == 1:
            cloud.nodes["pod"] = {"state": "PREEMPTED"}

    monkeypatch.setattr(tpu_pod, "follow", follow)
    monkeypatch.setattr(tpu_pod, "run_status", lambda *_: status)
    if status == "0":
        tpu_pod.keep_running(maker(cloud), "script")
    else:
        with pytest.raises(UserError, match="the run ended with status 78; its log is above"):
            tpu_pod.keep_running(maker(cloud), "script")
    assert (followed, slept) == ([READY, READY], [40])
    # Up already, so started over ssh; the one that was made anew starts it at boot.
    assert [call[1] for call in cloud.calls if call[0] == "tpu-vm"] == ["ssh", "delete"]


def test_what_ends_the_following_does_not_end_the_run(slept, monkeypatch):
    cloud = Cloud(node={"state": "READY"})
    expired = {"code": 16, "message": "Reauthentication is needed"}

    def follow(cloud, found):
        cloud.queues["pod"] = GcloudError(gcloud_errors.of_status(expired))
        cloud.nodes.clear()

    monkeypatch.setattr(tpu_pod, "follow", follow)
    with pytest.raises(UserError, match="gcloud auth login.*; the run itself goes on: start this"):
        tpu_pod.keep_running(maker(cloud), "script")


def queue(state, error=None):
    spec = {"tpu": {"nodeSpec": [{"nodeId": "pod"}]}, "state": {"state": state}}
    if error:
        spec["state"]["failedData"] = {"error": error}
    return spec


def test_a_queue_that_failed_says_why_and_is_made_anew_if_that_helps(slept):
    failed = queue("FAILED", QUOTA)
    found = find(Cloud(queue=failed), "pod")
    assert (found.state, found.failure.reason) == (GONE, f"RESOURCE_EXHAUSTED: {QUOTA['message']}")
    # What is left of an earlier try is nothing that could not be mended by now.
    assert maker(Cloud(queue=failed)).ready(had=False)[0].state == READY
    assert not slept
    assert maker(Cloud(queue=failed)).ready(had=True)[0].state == READY
    assert slept == [40]
    with pytest.raises(GcloudError, match="no"):
        maker(Cloud(queue=queue("FAILED", DENIED))).ready(had=True)


@pytest.mark.parametrize(
    ("node", "queued", "state"),
    [
        (None, None, None),
        ({"state": "READY"}, None, READY),
        ({"state": "CREATING"}, None, "CREATING"),
        ({"state": "DELETING"}, None, "DELETING"),
        ({"state": "TERMINATED"}, None, GONE),
        (None, queue("WAITING_FOR_RESOURCES"), "WAITING_FOR_RESOURCES"),
        ({"state": "READY"}, queue("ACTIVE"), READY),
        ({"state": "READY"}, queue("SUSPENDING"), GONE),
        (None, queue("ACTIVE"), GONE),  # Somebody has deleted the node alone.
        ({"state": "READY"}, GcloudError(gcloud_errors.of_status(DENIED)), READY),
    ],
)
def test_states(node, queued, state):
    cloud = Cloud(node=node, queue=queued)
    found = find(cloud, "pod")
    assert found.state == state
    if state is not None:
        pods.delete(cloud, found)
        # One that is gone by now is as good as deleted.
        kind = "tpu-vm" if queued is None or isinstance(queued, GcloudError) else "queued-resources"
        assert [call[0] for call in cloud.calls] == [kind]


def test_a_worker_that_cannot_be_set_up_says_so_in_its_log_and_its_status(tmp_path):
    script = worker_script.render(
        source=str(tmp_path / "no such file"), commit="abc", run="z/pod", arguments=["-c", "1"]
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def bash(line):
        return subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False
        )

    assert bash(script).returncode == 1
    assert bash(worker_script.STATUS).stdout == "1\n"
    shown = bash(worker_script.FOLLOW).stdout
    assert "no such file" in shown
    assert shown.endswith("error: this worker could not be set up, see above\n")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--zone=z", "--zone is not yours to hand on: the launcher sets it"),
        ("--metadata-from-file=a=b", "--metadata-from-file is not yours to hand on"),
        ("spot", "'spot' is no flag of gcloud; write --NAME=VALUE"),
    ],
)
def test_flags_that_are_not_handed_on(flag, said):
    for name in ("create_flags", "ssh_flags"):
        with pytest.raises(UserError, match=said):
            Gcloud("z", **{name: [flag]})
