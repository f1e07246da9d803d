"""A Ray that is started here is the one that its processes ask."""

import os
import socket

import pytest

from ray_jobs import connection
from ray_jobs.connection import announced_dashboard_port


def test_the_dashboard_has_a_port_that_nobody_has_and_all_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of another cluster, which the caller's shell names.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://192.0.2.7:8265")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        monkeypatch.setattr(connection, "DEFAULT_DASHBOARD_PORT", taken)
        port = announced_dashboard_port()
        assert port != taken
        assert os.environ["RAY_API_SERVER_ADDRESS"] == f"http://127.0.0.1:{port}"
    assert announced_dashboard_port() == taken  # where bookmarks find it


@pytest.mark.ray
def test_ray_says_of_this_cluster_who_lives(cluster: str) -> None:
    import ray
    from ray.util.state import get_actor

    @ray.remote(num_cpus=0)
    class Asking:
        def lives(self, actor_id: str) -> bool:
            # As Ray Train's cleaner asks of its controller: without an address.
            return get_actor(actor_id, timeout=10) is not None

    asking = Asking.remote()
    assert ray.get(asking.lives.remote(asking._actor_id.hex()), timeout=60)
    ray.kill(asking)
