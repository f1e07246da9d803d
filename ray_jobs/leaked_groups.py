"""What a killed controller left reserved: nobody else gives it back while its driver lives.

Ray Train keeps a cleaner for that, which knows of a placement group once its workers have started.
A controller that is killed before leaves the group, and what waits for its CPUs waits for ever.
"""

import logging
import time
from typing import Any, Final

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

logger = logging.getLogger(__name__)

# Workers begin in a group as soon as it is there; another run of this driver may be about to.
_LOOK_AGAIN_SECONDS: Final = 3.0
_MOST: Final = 10_000


def release_leaked_groups() -> None:
    """Remove the placement groups of this driver in which nothing runs, and nothing begins."""
    try:
        leaked = _empty_groups()
        if leaked:
            time.sleep(_LOOK_AGAIN_SECONDS)
            leaked &= _empty_groups()
    except RayStateApiException as error:
        logger.warning(
            "what the controller reserved may be left over: Ray does not say (%s)", error
        )
        return
    for group_id in leaked:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def _empty_groups() -> set[str]:
    context = ray.get_runtime_context()
    # Of this cluster: without an address Ray asks the last one that was started on this machine.
    address, job_id = context.gcs_address, context.get_job_id()
    groups: Any = list_placement_groups(
        address, [("creator_job_id", "=", job_id), ("state", "=", "CREATED")], limit=_MOST
    )
    # Groups first: actors that begin in between are seen.
    actors: Any = list_actors(
        address, [("job_id", "=", job_id), ("state", "!=", "DEAD")], limit=_MOST, detail=True
    )
    return {group.placement_group_id for group in groups} - {
        actor.placement_group_id for actor in actors
    }
