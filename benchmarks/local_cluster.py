"""A Ray cluster of several nodes on this machine, whose parts can be killed one by one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before anything imports ray: nothing is written into the home, or where other clusters look.
os.environ["RAY_AUTH_MODE"] = "disabled"

from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from ray_jobs.connection import announced_dashboard_port

ROOT = Path(__file__).parent.parent
# As Ray Train calls the actors.
WORKER, CONTROLLER = "RayTrainWorker", "TrainController"


class LocalCluster:
    """A head without CPUs, where driver and controller are, and nodes of one CPU each."""

    def __init__(self, num_nodes: int) -> None:
        """Start all of it; processes inherit the environment as it is now."""
        # Without a dashboard nothing lists actors.
        head = {"num_cpus": 0, "dashboard_port": announced_dashboard_port()}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        for _ in range(num_nodes):
            self.add_node()

    @property
    def num_nodes(self) -> int:
        """Nodes with a CPU."""
        return len(self._cluster.worker_nodes)

    def add_node(self, **environment: str) -> None:
        """Start one more node of one CPU, whose processes have this besides the environment."""
        self._cluster.add_node(num_cpus=1, env_vars=environment or None)

    def remove_node(self) -> None:
        """Take one of them away."""
        self._cluster.remove_node(next(iter(self._cluster.worker_nodes)))

    def actors(self, class_name: str) -> list[Any]:
        """Those of that class which are alive."""
        filters = [("class_name", "=", class_name), ("state", "=", "ALIVE")]
        return list(list_actors(address=self.address, filters=filters, detail=True))

    def wait_for_actors(
        self, class_name: str, count: int, *, seconds: float, besides: Collection[str] = ()
    ) -> list[Any]:
        """Those of that class, once there are ``count``, not counting the ids ``besides``."""
        deadline = time.monotonic() + seconds
        while len(found := [a for a in self.actors(class_name) if a.actor_id not in besides]) != (
            count
        ):
            assert time.monotonic() < deadline, f"{len(found)} {class_name}s, not {count}"
            time.sleep(0.5)
        return found

    def kill_actor(self, class_name: str, rng: random.Random) -> None:
        """Kill -9 the process of one actor of that class."""
        os.kill(rng.choice(self.actors(class_name)).pid, signal.SIGKILL)

    def kill_node_of(self, class_name: str, rng: random.Random) -> None:
        """Kill -9 all processes of a node that has such an actor."""
        self._cluster.remove_node(self._node_of(class_name, rng), allow_graceful=False)

    def give_notice_to_node_of(
        self, class_name: str, rng: random.Random, *, seconds: int
    ) -> Callable[[], None]:
        """Say that a node with such an actor goes in ``seconds``; what is returned makes it go."""
        node = self._node_of(class_name, rng)
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
        command += ["--address", self.address, "--node-id", node.node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return lambda: self._cluster.remove_node(node, allow_graceful=False)

    def _node_of(self, class_name: str, rng: random.Random) -> Any:
        node_id = rng.choice(self.actors(class_name)).node_id
        (node,) = (node for node in self._cluster.worker_nodes if node.node_id == node_id)
        return node

    def stop(self) -> None:
        """End every process of it."""
        self._cluster.shutdown()


@contextmanager
def local_cluster(num_nodes: int) -> Iterator[LocalCluster]:
    """A cluster as long as the block lasts, with its files in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="rf-")  # short: sockets in it have at most 107 characters
    os.environ |= {"RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    cluster = LocalCluster(num_nodes)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
