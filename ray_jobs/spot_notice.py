"""Tells Ray that this machine is about to be taken away, so that runs on it keep a checkpoint.

    python -m ray_jobs.spot_notice               waits for the notice that EC2 gives a spot instance
    python -m ray_jobs.spot_notice --seconds 90  says it at once, e.g. in a preStop hook

Ray Train acts on nodes that drain, but nothing in Ray reads what EC2 says two minutes ahead.
"""

import argparse
import datetime
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Final

import ray

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 2.0
# As the AWS SDKs call it.
_ENDPOINT_VARIABLE: Final = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_ENDPOINT: Final = "http://169.254.169.254"
_HEADER: Final = "X-aws-ec2-metadata-token"


def main() -> None:
    """Wait for the notice, if no deadline is given, and drain this node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="until the machine goes")
    seconds: float | None = parser.parse_args().seconds
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    endpoint = os.environ.get(_ENDPOINT_VARIABLE, _ENDPOINT)
    while seconds is None:
        seconds = seconds_left(endpoint)
        if seconds is None:
            time.sleep(_POLL_SECONDS)
    logger.info("this machine goes in %.0f s", seconds)
    drain_this_node(seconds)


def seconds_left(endpoint: str) -> float | None:
    """Seconds until EC2 takes this instance away, at least 0; None if it has not said so.

    Args:
        endpoint: of the instance's metadata, without a slash at the end.
    """
    try:
        # Without a token (IMDSv2) an instance that requires one answers nothing.
        token = _ask(f"{endpoint}/latest/api/token", "PUT", f"{_HEADER}-ttl-seconds", "60")
        action = _ask(f"{endpoint}/latest/meta-data/spot/instance-action", "GET", _HEADER, token)
    except urllib.error.HTTPError as error:
        if error.code != 404:  # which says that nothing is planned
            logger.warning("%s answers %s", error.url, error)
        return None
    except OSError as error:
        logger.warning("%s does not answer: %s", endpoint, error)
        return None
    when = datetime.datetime.fromisoformat(json.loads(action)["time"])
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def _ask(url: str, method: str, header: str, value: str) -> str:
    request = urllib.request.Request(url, method=method, headers={header: value})
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def drain_this_node(seconds: float) -> None:
    """Mark the Ray node on this machine as one that goes in ``seconds``."""
    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    context = ray.get_runtime_context()
    address, node = context.gcs_address, context.get_node_id()
    ray.shutdown()
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    command += ["--deadline-remaining-seconds", str(int(seconds))]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
