"""The two descriptions of a cluster, against what the tools that read them accept.

cluster.yaml: Ray's own schema and checks, and for what goes to EC2 the schema of boto3. The RayJob:
a schema written by hand after KubeRay's field reference; that its pods run is not tested.
"""

import copy
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_jobs.cli import parse

ROOT = Path(__file__).parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "kubernetes" / "rayjob.yaml").read_text())
SCHEMA = yaml.safe_load((Path(__file__).parent / "rayjob.schema.yaml").read_text())


def launched(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of it before it asks the cloud for anything."""
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_up_accepts_the_cluster() -> None:
    prepared = launched(CLUSTER)
    head, gpu = (prepared["available_node_types"][name] for name in ("head", "gpu"))
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] < gpu["max_workers"] <= prepared["max_workers"]
    # What pip would install at its own choice, as Ray's defaults do.
    assert not any("pip install" in c and "uv pip" not in c for c in prepared["setup_commands"])
    assert prepared["head_setup_commands"] == prepared["setup_commands"]


def test_ray_up_refuses_a_misspelt_field() -> None:
    misspelt = {**CLUSTER, "head_node_typ": "head"}
    with pytest.raises(jsonschema.ValidationError, match="head_node_typ"):
        launched(misspelt)


@pytest.mark.parametrize("name", ["head", "gpu"])
def test_ec2_knows_every_field_of_a_machine(name: str) -> None:
    session = botocore.session.get_session()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    node = CLUSTER["available_node_types"][name]["node_config"]
    asked = {**node, "MinCount": 1, "MaxCount": 1}
    assert not ParamValidator().validate(asked, shape).has_errors()
    assert ParamValidator().validate({**asked, "InstanceTyp": "m7i"}, shape).has_errors()
    # Rights come with the machine; a key is nowhere.
    assert "IamInstanceProfile" in node
    assert "KeyName" not in node


def test_both_clusters_ask_for_the_token() -> None:
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in CLUSTER[commands]:
            assert command == "ray stop" or "RAY_AUTH_MODE=token" in command
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert RAYJOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_machines_get_the_locked_requirements_by_the_pinned_installer() -> None:
    (pinned,) = re.findall(r"UV_VERSION := (\S+)", (ROOT / "Makefile").read_text())
    dockerfile = (ROOT / "kubernetes" / "Dockerfile").read_text()
    for text in ("\n".join(CLUSTER["setup_commands"]), dockerfile):
        assert re.findall(r"uv(?:/|==)([\d.]+\d)", text) == [pinned]
        assert "--require-hashes" in text
        assert "-r requirements.lock.txt" in text


def test_secrets_and_results_stay_at_home() -> None:
    ignored = (ROOT / ".rayignore").read_text().split()
    for name in (".env", "runs"):
        assert name in CLUSTER["rsync_exclude"]
        assert name in [line.rstrip("/") for line in ignored]


def test_kuberay_knows_every_field_of_the_job() -> None:
    jsonschema.validate(RAYJOB, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["spec", "backoffLimt"], 3, "'backoffLimt' was unexpected"),
        (["spec", "backoffLimit"], "3", "'3' is not of type 'integer'"),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0, "0 is not"),
    ],
)
def test_a_job_that_kubernetes_would_refuse_is_refused(
    path: list[str], value: object, message: str
) -> None:
    job = copy.deepcopy(RAYJOB)
    place = job
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(job, SCHEMA)


def test_the_job_runs_a_command_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    name, job = parse(arguments)
    assert name == RAYJOB["metadata"]["name"]
    group = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert job.cluster.max_workers <= group["maxReplicas"]


def test_the_job_is_for_the_ray_that_is_locked() -> None:
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock.txt").read_text(), re.M)
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == locked
