"""Runs a command on several supervised processes: train_pod.py HOSTS LOGS PYTHON_ARGUMENTS."""

import os
from pathlib import Path
import sys

from launch.local_pod import free_port
from launch.supervisor import Member, Policy, supervise
from shortcut_tpu.pod import distributed


def members() -> list[Member]:
    hosts, logs, *arguments = sys.argv[1:]
    shared = dict(os.environ)
    if int(hosts) > 1:
        shared[distributed.COORDINATOR] = f"localhost:{free_port()}"
        shared[distributed.NUM_PROCESSES] = hosts
    return [
        Member(
            name=f"host {host}",
            arguments=arguments,
            environment={**shared, distributed.PROCESS_ID: str(host)},
            log=Path(logs) / f"host-{host}.log",
            show=host == 0,
        )
        for host in range(int(hosts))
    ]


supervise(members, Policy(max_restarts=10, first_delay=0.1, grace_seconds=60))
