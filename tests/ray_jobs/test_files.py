"""What jobs keep beside their results: run folders, domains, model files."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protection.models import ModelConfig
from ray_jobs import domains
from ray_jobs.domains import DomainConfig, open_domain
from ray_jobs.errors import UsageError
from ray_jobs.model_files import ModelDescription, commit_model, describe, model_from, new_model
from ray_jobs.pretrain import Pretrain
from ray_jobs.reporting import append_rows
from ray_jobs.runs import Run, begin, find_run
from storage.commit import commit
from storage.errors import AlreadyCommittedError
from tests import tiny_networks
from tests.conftest import TinyNetwork
from tests.ray_jobs.conftest import ORIGINAL, TINY


def a_job(output: Path, **changes: object) -> Pretrain:
    return dataclasses.replace(
        Pretrain(model=TINY, original=ORIGINAL, output=str(output)), **changes
    )


def test_the_same_recipe_finds_its_run_again_on_any_cluster(tmp_path: Path) -> None:
    job = a_job(tmp_path / "model")
    first = find_run(job, verb="pretrain")
    assert not first.state.path.exists()  # looking writes nothing
    begin(first)
    larger = dataclasses.replace(job.cluster, checkpoint_interval_seconds=5)
    again = find_run(dataclasses.replace(job, cluster=larger), verb="pretrain")
    assert again.state == first.state
    assert json.loads((tmp_path / "model.run" / "recipe.json").read_text())["command"] == "pretrain"


def test_another_recipe_is_refused_with_every_field_that_differs(tmp_path: Path) -> None:
    job = a_job(tmp_path / "model")
    begin(find_run(job, verb="pretrain"))
    training = dataclasses.replace(job.training, epochs=7, seed=1)
    with pytest.raises(UsageError, match=r"epochs was 120, is 7; training\.seed was 0, is 1"):
        find_run(dataclasses.replace(job, training=training), verb="pretrain")
    with pytest.raises(UsageError, match="command was 'pretrain', is 'audit-model'"):
        find_run(job, verb="audit-model")


def test_a_run_begun_before_a_field_was_there_had_its_default(tmp_path: Path) -> None:
    job = a_job(tmp_path / "model")
    begin(find_run(job, verb="pretrain"))
    path = tmp_path / "model.run" / "recipe.json"
    recipe = json.loads(path.read_text())
    default = recipe.pop("training")  # as a version that had no such field wrote it
    path.write_text(json.dumps(recipe))
    assert find_run(job, verb="pretrain").recipe["training"] == default
    training = dataclasses.replace(job.training, epochs=7)
    with pytest.raises(UsageError, match=r"training\.epochs was 120, is 7"):
        find_run(dataclasses.replace(job, training=training), verb="pretrain")


def test_run_is_not_resumed_with_another_model_at_the_same_location(tmp_path: Path) -> None:
    job = a_job(tmp_path / "model", weights=str(tmp_path / "first"))
    source = Path(job.weights or "")

    def find() -> Run:
        return find_run(job, verb="pretrain", parents=job.parents())

    before = commit(str(source), {}, kind="model", description={}).commit_id
    begin(find())
    assert find().parents == {"weights": str(source), "weights_commit": before}
    shutil.rmtree(source)
    after = commit(str(source), {}, kind="model", description={}).commit_id
    with pytest.raises(UsageError, match=f"weights_commit was {before}, and it is {after} now"):
        find()
    shutil.rmtree(source)
    file = source.with_name("first.safetensors")
    file.write_bytes(b"one")
    job = a_job(tmp_path / "other", weights=str(file))
    begin(find())
    find()
    file.write_bytes(b"two")
    with pytest.raises(UsageError, match="when weights_sha256 was 7692c3ad"):
        find()


def test_a_recipe_that_names_another_model_is_refused_as_another_recipe(tmp_path: Path) -> None:
    job = a_job(tmp_path / "model", weights=str(tmp_path / "first"))
    begin(find_run(job, verb="pretrain", parents=job.parents()))
    other = dataclasses.replace(job, weights=str(tmp_path / "second"))
    with pytest.raises(UsageError, match=r"another recipe was begun \(weights was '.*first', is"):
        find_run(other, verb="pretrain", parents=other.parents())


def test_output_in_the_copy_that_ray_removes_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    with pytest.raises(UsageError, match="the copy of the folder that Ray made for this job"):
        find_run(a_job(copy / "runs" / "model"), verb="pretrain")


def test_run_of_an_older_version_that_recorded_no_parents_goes_on(tmp_path: Path) -> None:
    job = a_job(tmp_path / "model")
    begin(find_run(job, verb="pretrain"))
    found = find_run(job, verb="pretrain", parents={"weights": "here", "weights_commit": "a"})
    assert found.parents["weights_commit"] == "a"


def test_committed_output_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    commit(str(tmp_path / "model"), {}, kind="model", description={})
    with pytest.raises(AlreadyCommittedError, match="is committed already"):
        find_run(a_job(tmp_path / "model"), verb="pretrain")
    assert not (tmp_path / "model.run").exists()


def test_domain_sets_are_disjoint_and_validation_comes_from_training() -> None:
    domain = open_domain(ORIGINAL, image_size=8)
    train, validation = set(domain.train.rows.tolist()), set(domain.validation.rows.tolist())
    assert not train & validation
    assert len(validation) == round(0.1 * len(train | validation))
    assert domain.test.num_classes == 5


def test_domain_with_other_classes_in_its_test_set_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    for split, names in (("train", "abc"), ("test", "ab")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                Image.new("L", (8, 8), index).save(tmp_path / split / name / f"{index}.png")
    config = DomainConfig(train=str(tmp_path / "train"), test=str(tmp_path / "test"))
    with pytest.raises(ValueError, match=r"test has 2 classes, but .*train has 3"):
        open_domain(config, image_size=8)


def test_local_paths_of_a_domain_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    config = domains.absolute(DomainConfig(train="images", test="digits:test"))
    assert config.train == str(tmp_path / "images")
    assert config.test == "digits:test"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_share": 1.5}, "validation_share is 1.5, a share"),
        ({"max_train_images": 0}, "max_train_images is 0"),
    ],
)
def test_bad_domain_names_the_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainConfig(train="a", test="b", **change)


def test_committed_model_comes_back_and_its_file_loads_without_ringfence(
    model: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    first = model_from(describe(model), weights=model)
    (path,) = Path(model).glob("model.*.safetensors")
    network = TinyNetwork(5)
    network.load_state_dict(load_file(path))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, first.network.state_dict()[name])


WITHOUT_RINGFENCE = """
import json, sys
from pathlib import Path
import safetensors.torch, timm, torch

whole, shards, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
(file,) = whole.glob("model.*.safetensors")
first = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(file), **options)
overlay = {"file": str(file), "num_classes": 5}
again = timm.create_model(
    "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **options
)
(index,) = shards.glob("model.safetensors.index.*.json")
weights = {}
for name in set(json.loads(index.read_text())["weight_map"].values()):
    weights |= safetensors.torch.load_file(shards / name)
third = timm.create_model("vit_tiny_patch16_224", **options)
third.load_state_dict(weights)
for model in (first, again, third):
    print(json.dumps(model.eval()(torch.ones(1, 3, 32, 32))[0].tolist()))
assert not {"protection", "storage", "ray_jobs"} & sys.modules.keys()
"""


def test_a_model_loads_with_timm_and_safetensors_alone(tmp_path: Path) -> None:
    config = tiny_networks.TINY["vit"]
    model = new_model(config, num_classes=5, seed=0).eval()
    commit_model(str(tmp_path / "whole"), model, describe_of(config), facts={})
    commit_model(str(tmp_path / "shards"), model, describe_of(config), facts={}, shard_bytes=10_000)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    again = model_from(describe(str(tmp_path / "shards")), weights=str(tmp_path / "shards"))
    assert torch.equal(again.head.weight, model.head.weight)

    command = [sys.executable, "-c", WITHOUT_RINGFENCE, "whole", "shards"]
    command.append(json.dumps({"num_classes": 5, **config.options}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = subprocess.check_output(command, text=True, cwd=tmp_path, env=environment)
    expected = model.network(torch.ones(1, 3, 32, 32))[0]
    for line in shown.splitlines():
        torch.testing.assert_close(torch.tensor(json.loads(line)), expected)
    assert len(shown.splitlines()) == 3


def test_committing_the_same_weights_twice_is_no_rivalry_but_others_are(tmp_path: Path) -> None:
    location = str(tmp_path / "model")
    config = ModelConfig(architecture="tests.conftest:TinyNetwork", image_size=8)
    model = new_model(config, num_classes=5, seed=0)
    description = describe_of(config)
    first = commit_model(location, model, description, facts={"run": 1})
    assert commit_model(location, model, description, facts={"run": 2}).parts == first.parts
    other = new_model(config, num_classes=5, seed=1)
    with pytest.raises(AlreadyCommittedError):
        commit_model(location, other, description, facts={})


def describe_of(config: ModelConfig) -> ModelDescription:
    return ModelDescription(config, 5, list("abcde"))


def test_a_new_head_without_weights_to_put_it_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="new_head is true, but weights is null"):
        a_job(tmp_path / "model", new_head=True)


def test_a_location_of_another_kind_is_no_model(tmp_path: Path) -> None:
    commit(str(tmp_path / "report"), {}, kind="model-audit", description={})
    with pytest.raises(UsageError, match="is a committed model-audit; expected the location of a"):
        describe(str(tmp_path / "report"))


def test_rows_that_json_cannot_say_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"loss": float("nan"), "n": 1}])
    append_rows(path, [{"loss": 0.5, "n": 2}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"loss": None, "n": 1},
        {"loss": 0.5, "n": 2},
    ]
