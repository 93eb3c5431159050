"""A TPU API on loopback, whose workers are processes of this machine.

It knows what the real gcloud client asks in these tests: nodes, queued resources, operations, the
project and its SSH keys. A node that is created boots: every worker runs the startup script.
"""

from collections.abc import Iterator, Mapping
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import re
import shutil
import signal
import stat
import subprocess
import threading
from typing import Any

from tests.multihost import pods

ROOT = Path(__file__).parents[2]
_PREFIX = r"/v2(?:alpha1)?/(projects/p/locations/[^/]+)"

# The stand-ins: ssh runs its command as the worker whose address it is given.
_SSH = """#!/bin/bash
# gcloud asks it for its version, too.
while (($#)) && [[ "$1" != *@10.0.0.* && "$1" != 10.0.0.* ]]; do shift; done
(($#)) || exit 0
worker="{workers}/${{1##*.}}"; shift
if [[ "$1" == -- ]]; then shift; fi
if [[ -f "$worker/env" ]]; then set -a; source "$worker/env"; set +a; fi
cd "$worker" && exec bash -c "$*"
"""
_SSH_KEYGEN = """#!/bin/bash
while [[ "$1" != -f ]]; do shift; done
echo key > "$2"; echo "ssh-rsa AAAA user" > "$2.pub"
"""
_SUDO = """#!/bin/bash
shift; exec "$@"
"""


class FakeCloud:
    """The API, and what it holds.

    Attributes:
      requests: every (method, path) so far.
      nodes: by name, as the API describes them.
      queue: states by name of a queued resource.
      waits: how many looks a queued resource makes before it is granted.
      refuse: (status code, canonical code, message) to answer creations with.
      operation_error: (code, message) with which the operations of creations end.
      faults: (pattern of "METHOD path", status code, body) to answer the next requests with, each
        once; status 0 closes the connection.
      environment: of the workers, by worker, on top of this process's own.
    """

    def __init__(
        self, folder: Path, workers: int = 1, environment: Mapping[str, str] | None = None
    ):
        """A cloud with nothing in it.

        Args:
          folder: for the workers' disks and the stand-ins.
          workers: of every node.
          environment: of gcloud and of all workers, on top of this process's own.
        """
        self.folder = folder
        self._environment = environment or {}
        self.workers = workers
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.nodes: dict[str, dict[str, Any]] = {}
        self.queue: dict[str, dict[str, Any]] = {}
        self.waits = 0
        self.refuse: tuple[int, str, str] | None = None
        self.operation_error: tuple[int, str] | None = None
        self.faults: list[tuple[str, int, Any]] = []
        self.environment = lambda worker: {}
        self.boots = False
        self._booted: list[subprocess.Popen] = []
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                fault = cloud.fault(f"{self.command} {self.path}")
                if fault and not fault[0]:
                    self.close_connection = True
                    return
                status, content = fault or cloud.handle(self.command, self.path, body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_PATCH = _answer

            def log_message(self, *_: object) -> None:
                """Keeps quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            for worker in range(self.workers):
                self.kill(worker)

    def gcloud_environment(self) -> dict[str, str]:
        """The environment in which gcloud and ssh reach this cloud and no other."""
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(exist_ok=True)
        texts = {
            "ssh": _SSH.format(workers=self.folder / "workers"),
            "ssh-keygen": _SSH_KEYGEN,
            "sudo": _SUDO,
        }
        for name, text in texts.items():
            path = bin_folder / name
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        for name in ("config", "home/.ssh"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return {
            **os.environ,
            **self._environment,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{url}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_CORE_PROJECT": "p",
            "CLOUDSDK_CONFIG": str(self.folder / "config"),
        }

    # ------------------------------------------------------------------ the API
    def fault(self, request: str) -> tuple[int, Any] | None:
        """The answer that a test has planned for this request, which then is used up."""
        for index, (pattern, status, content) in enumerate(self.faults):
            if re.search(pattern, request):
                del self.faults[index]
                return status, content
        return None

    def handle(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append((method, path))
        path, _, query = path.partition("?")
        if path.startswith("/compute/v1/projects/p"):
            return 200, {"name": "p", "commonInstanceMetadata": {"items": []}}
        if match := re.fullmatch(_PREFIX + r"/operations/(.+)", path):
            return 200, self._done(match[1])
        if match := re.fullmatch(_PREFIX + r"/(nodes|queuedResources)", path):
            if self.refuse:
                code, canonical, message = self.refuse
                error = {"code": code, "status": canonical, "message": message}
                return code, {"error": error}
            self.bodies.append(body)
            if self.operation_error:
                code, message = self.operation_error
                error = {"code": code, "message": message}
                name = f"{match[1]}/operations/o"
                return 200, {"name": name, "done": True, "error": error}
            name = dict(part.split("=") for part in query.split("&"))
            if match[2] == "nodes":
                self._create(match[1], name["nodeId"], body)
            else:
                self.queue[name["queuedResourceId"]] = {"body": body, "looks": 0}
            return 200, self._done(match[1])
        if match := re.fullmatch(_PREFIX + r"/nodes/([^/:]+)(:getGuestAttributes)?", path):
            return self._node(method, match[1], match[2], bool(match[3]), body)
        if match := re.fullmatch(_PREFIX + r"/queuedResources/([^/]+)", path):
            return self._queued(method, match[1], match[2])
        return 404, {"error": {"code": 404, "status": "NOT_FOUND", "message": path}}

    def _done(self, parent: str) -> dict[str, Any]:
        # The client looks up what an operation made by the name in its response.
        response = {"name": f"{parent}/nodes/{next(iter(self.nodes), 'none')}"}
        return {"name": f"{parent}/operations/o", "done": True, "response": response}

    def _create(self, parent: str, name: str, body: dict[str, Any]) -> None:
        endpoints = [
            {
                "ipAddress": f"10.0.0.{worker}",
                "port": 8470,
                "accessConfig": {"externalIp": f"10.0.0.{worker}"},
            }
            for worker in range(self.workers)
        ]
        self.nodes[name] = {
            **body,
            "name": f"{parent}/nodes/{name}",
            "id": "7",
            "state": "READY",
            "apiVersion": "V2",
            "networkEndpoints": endpoints,
        }
        if self.boots:
            for worker in range(self.workers):
                self._boot(worker, body["metadata"]["startup-script"])

    def _node(
        self, method: str, parent: str, name: str, attributes: bool, body: dict[str, Any]
    ) -> tuple[int, Any]:
        if name not in self.nodes:
            message = f"Resource '{parent}/nodes/{name}' was not found"
            return 404, {"error": {"code": 404, "status": "NOT_FOUND", "message": message}}
        if attributes:
            return 404, {"error": {"code": 404, "status": "NOT_FOUND", "message": "none"}}
        if method == "GET":
            return 200, self.nodes[name]
        if method == "PATCH":
            self.nodes[name]["metadata"] = body["metadata"]
        if method == "DELETE":
            del self.nodes[name]
        return 200, self._done(parent)

    def _queued(self, method: str, parent: str, name: str) -> tuple[int, Any]:
        if name not in self.queue:
            return 404, {"error": {"code": 404, "status": "NOT_FOUND", "message": "not found"}}
        entry = self.queue[name]
        if method == "DELETE":
            self.queue.pop(name)
            for node in [n for n, one in self.nodes.items() if self._is_of(one, name)]:
                del self.nodes[node]
            return 200, self._done(parent)
        entry["looks"] += 1
        state = entry.get("state") or "WAITING_FOR_RESOURCES"
        if entry["looks"] > self.waits and "state" not in entry:
            state = entry["state"] = "ACTIVE"
            for spec in entry["body"]["tpu"]["nodeSpec"]:
                many = spec.get("multisliceParams")
                names = [spec["nodeId"]] if many is None else []
                if many:
                    names = [f"{many['nodeIdPrefix']}-{i}" for i in range(int(many["nodeCount"]))]
                for node in names:
                    self._create(parent, node, spec["node"])
                    if node in self.nodes:
                        self.nodes[node]["queuedResource"] = f"{parent}/queuedResources/{name}"
        described = {"state": state}
        if "error" in entry:
            described["failedData"] = {"error": entry["error"]}
        body = {"tpu": entry["body"]["tpu"], "state": described}
        return 200, {"name": f"{parent}/queuedResources/{name}", **body}

    def _is_of(self, node: dict[str, Any], queued: str) -> bool:
        return node.get("queuedResource", "").endswith(f"/{queued}")

    # ------------------------------------------------------------------ the workers
    def preempt(self, name: str) -> None:
        """Takes a node's machines away without asking."""
        self.nodes[name]["state"] = "PREEMPTED"
        for worker in range(self.workers):
            self.kill(worker)
            shutil.rmtree(self.home(worker))

    def home(self, worker: int) -> Path:
        return self.folder / "workers" / str(worker)

    def make_home(self, worker: int) -> dict[str, str]:
        """Gives a worker its folder; returns the variables that are its own."""
        home = self.home(worker)
        home.mkdir(parents=True)
        variables = {"HOME": str(home), **self.environment(worker)}
        (home / "env").write_text("".join(f"{k}='{v}'\n" for k, v in variables.items()))
        return variables

    def _boot(self, worker: int, script: str) -> None:
        home, variables = self.home(worker), self.make_home(worker)
        with (home / "boot.log").open("wb") as log:
            subprocess.run(
                ["bash", "-c", script],
                env={**self.gcloud_environment(), **variables},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )

    def pid(self, worker: int) -> int | None:
        """The supervisor of a worker."""
        path = self.home(worker) / "shortcut_tpu" / "pid"
        text = path.read_text().strip() if path.exists() else ""
        return int(text) if text else None

    def kill(self, worker: int) -> None:
        """Ends a worker's session of processes; a supervisor's children die with it."""
        pid = self.pid(worker)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)


@contextlib.contextmanager
def tpu_pod(cloud: FakeCloud, *arguments: str, log: Path) -> Iterator[subprocess.Popen]:
    """Runs `python -m launch.tpu_pod` against a cloud, its output in a file; ends its session."""
    log.unlink(missing_ok=True)
    command = ["-m", "launch.tpu_pod", "--zone=us-x1-a", *arguments]
    with pods.started(command, cloud.gcloud_environment(), log) as process:
        yield process
