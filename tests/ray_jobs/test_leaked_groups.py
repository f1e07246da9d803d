"""Groups that a killed controller left are given back, and no others."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.util.state.exception import RayStateApiException

from ray_jobs import leaked_groups

ADDRESS = "192.0.2.7:6379"


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids, of which a look sees those of `looks` in turn."""
    gone: list[str] = []
    context = SimpleNamespace(get_job_id=lambda: "06000000", gcs_address=ADDRESS)
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(leaked_groups.time, "sleep", lambda _: None)
    monkeypatch.setattr(
        leaked_groups, "remove_placement_group", lambda group: gone.append(group.id.hex())
    )
    return gone


def see(monkeypatch: pytest.MonkeyPatch, *looks: tuple[list[str], list[str]]) -> None:
    """Let each look find these groups, and actors in these."""
    groups, actors = ([[*look[n]] for look in looks] for n in (0, 1))

    def found(left: list[list[str]], wanted: tuple[str, str, str]) -> Any:
        def listed(address: str, filters: list[tuple[str, str, str]], **_: Any) -> list[Any]:
            assert address == ADDRESS  # of this cluster, whatever others there are
            assert wanted in filters
            return [SimpleNamespace(placement_group_id=name) for name in left.pop(0)]

        return listed

    of_job = ("creator_job_id", "=", "06000000")
    monkeypatch.setattr(leaked_groups, "list_placement_groups", found(groups, of_job))
    monkeypatch.setattr(leaked_groups, "list_actors", found(actors, ("job_id", "=", "06000000")))


A, B, C = ("a" * 36, "b" * 36, "c" * 36)


def test_only_what_nothing_runs_in_and_nothing_begins_in_is_removed(
    removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, ([A, B, C], [B]), ([A, C], [C]))
    leaked_groups.release_leaked_groups()
    assert removed == [A]


def test_where_nothing_is_left_nobody_waits(
    removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, ([B], [B]))
    leaked_groups.release_leaked_groups()
    assert removed == []


def test_a_cluster_that_does_not_say_is_left_alone(
    removed: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RayStateApiException("no dashboard")

    monkeypatch.setattr(leaked_groups, "list_placement_groups", fail)
    leaked_groups.release_leaked_groups()
    assert removed == []
    assert "Ray does not say (no dashboard)" in caplog.text
