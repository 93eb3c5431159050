"""Finds, creates, awaits, re-creates and deletes a pod of TPU VMs.

How a pod was made, by itself or by the queue, and of how many slices, is found and not told.

Usage:
  found = find(cloud, "pod")
  found.state, found.nodes           # "READY", ("pod-0", "pod-1")
  delete(cloud, found)
"""

from collections.abc import Callable
import dataclasses
import time
from typing import Any

from launch import gcloud_errors
from launch.gcloud import Gcloud, GcloudError
from launch.gcloud_errors import Complaint, Kind

READY = "READY"
# Preempted, or taken away otherwise: it has to be made anew.
GONE = "GONE"
_NODE_GONE = ("PREEMPTED", "TERMINATED", "STOPPED")
_QUEUE_GONE = ("SUSPENDING", "SUSPENDED", "FAILED")
_MOST_PAUSES = 45.0


@dataclasses.dataclass(frozen=True)
class Found:
    """A pod as it is.

    Attributes:
      state: READY, GONE, what it is doing else, or None where there is no such pod.
      nodes: the names of its slices.
      queued: the name of the queued resource that it belongs to, if there is one.
      failure: why the queue failed.
    """

    state: str | None
    nodes: tuple[str, ...] = ()
    queued: str | None = None
    failure: Complaint | None = None


def find(cloud: Gcloud, name: str) -> Found:
    """Looks for a pod of a name.

    Raises:
      GcloudError: gcloud refuses to say.
    """
    node = cloud.node(name)
    owner = str((node or {}).get("queuedResource") or name).rpartition("/")[2]
    try:
        queue = cloud.queued(owner)
    except GcloudError as error:
        # Who may see nodes may not always see the queue.
        if node is None or error.kind is not Kind.PERMISSION:
            raise
        queue = None
    if queue is None:
        return Found(None) if node is None else Found(_state([node]), (name,))
    nodes, state = _nodes(queue) or (name,), queue.get("state", {})
    word = str(state.get("state"))
    if word in _QUEUE_GONE:
        failed = state.get("failedData", {}).get("error")
        return Found(GONE, nodes, owner, gcloud_errors.of_status(failed) if failed else None)
    if word != "ACTIVE":
        return Found(word, nodes, owner)
    all_nodes = [node if one == name and node else cloud.node(one) for one in nodes]
    return Found(_state(all_nodes), nodes, owner)


def _nodes(queue: dict[str, Any]) -> tuple[str, ...]:
    names: list[str] = []
    for spec in queue.get("tpu", {}).get("nodeSpec", ()):
        many = spec.get("multisliceParams") or spec.get("multiNodeParams")
        if many:
            names += [f"{many['nodeIdPrefix']}-{i}" for i in range(int(many["nodeCount"]))]
        elif "nodeId" in spec:
            names.append(spec["nodeId"])
    return tuple(names)


def _state(nodes: list[dict[str, Any] | None]) -> str:
    states = [str(node.get("state")) if node else GONE for node in nodes]
    if any(state in (GONE, *_NODE_GONE) for state in states):
        return GONE
    return next((state for state in states if state != READY), READY)


def delete(cloud: Gcloud, found: Found) -> None:
    """Deletes a pod, and the queued resource that would make it anew.

    Raises:
      GcloudError: gcloud refuses.
    """
    commands = [cloud.delete_node(node) for node in found.nodes]
    if found.queued:
        commands = [cloud.delete_queued(found.queued)]
    for command in commands:
        try:
            cloud.call(command)
        except GcloudError as error:
            if error.kind is not Kind.MISSING:
                raise


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes a pod of a name, and waits until it is there.

    Attributes:
      create: the command that makes it.
      what: for messages, such as "v5litepod-16 in us-central1-a".
      poll_seconds: between looks; a zone that has no chips is asked after growing pauses, of up to
        45 times this.
      say: told what happens, in lines.
    """

    cloud: Gcloud
    name: str
    create: list[str]
    what: str
    poll_seconds: float
    say: Callable[[str], None]

    def ready(self, had: bool) -> tuple[Found, bool]:
        """Creates the pod where it is missing or preempted, and waits for it.

        Args:
          had: whether there was one, so that one that is refused now may be granted later: a zone
            that is empty fills again, and a deleted pod gives its quota back after a while.

        Returns:
          The pod, and whether it was created; if not, its workers have not run the script.

        Raises:
          GcloudError: it is refused for what waiting does not change.
        """
        created, said, refusals = False, "", 0
        while (found := find(self.cloud, self.name)).state != READY:
            if found.state == GONE:
                if found.failure is None:
                    had = True
                elif created or had:
                    self._refuse(found.failure, had)
                    refusals += 1
                    self._pause(found.failure, refusals)
                why = "failed in the queue" if found.failure else "was preempted"
                self.say(f"{self.name} {why}; deleting what is left")
                delete(self.cloud, found)
            if found.state in (None, GONE):
                self.say(f"creating {self.name}: {self.what}")
                try:
                    self.cloud.call(self.create)
                except GcloudError as error:
                    # One that exists after all is of a call of ours whose answer was lost.
                    if error.kind is not Kind.EXISTS:
                        self._refuse(error.complaint, had)
                        refusals += 1
                        self._pause(error.complaint, refusals)
                        continue
                    time.sleep(self.poll_seconds)
                created = True
                continue
            if found.state != said:
                said = str(found.state)
                self.say(f"{self.name}: {said}")
            time.sleep(self.poll_seconds)
        return found, created

    def _refuse(self, complaint: Complaint, had: bool) -> None:
        if not (complaint.passes or (had and complaint.kind in (Kind.CAPACITY, Kind.QUOTA))):
            raise GcloudError(complaint)

    def _pause(self, complaint: Complaint, refusals: int) -> None:
        pause = self.poll_seconds * min(2.0**refusals, _MOST_PAUSES)
        self.say(f"{self.name}: not yet: {complaint.reason}; trying again in {pause:g} s")
        time.sleep(pause)
