"""What protecting a diffusion model is worth: a recipe folder's pipeline in this process.

    python -m benchmarks.diffusion_digits recipes/digits-diffusion --seeds 0 1 2

Every seed is a pipeline of its own: its weights, its protection, its adversary. The recipes say
what is done; no cluster is started, so it needs no more than one machine's cores. What the models
of the first seed draw after the worst attack goes to ``--picture``.
"""

import argparse
import copy
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.environment import describe_environment
from protection.audit.attacks import Attack
from protection.audit.fine_tuning import fine_tune
from protection.audit.generation import error_by_timestep
from protection.audit.scores import STARTS, Estimate, estimate, transfer_gain
from protection.audit.threat_models import attacks_of
from protection.denoisers import Denoiser
from protection.denoising import DENOISING
from protection.evaluation import accuracy
from protection.sampling import sample
from protection.sophon.algorithm import protect, start
from protection.sophon.domains import Domains
from protection.training import start_training, train
from ray_jobs.audit_model import AuditModel
from ray_jobs.domains import Domain, open_domain
from ray_jobs.model_files import new_denoiser
from ray_jobs.pretrain import Pretrain
from ray_jobs.preview import picture_rows
from ray_jobs.protect_model import ProtectModel
from ray_jobs.recipes import read_recipe

_NUM_BINS = 5
_NUM_IMAGES = 10


class Recipes(NamedTuple):
    """Of a folder."""

    pretrain: Pretrain
    protect: ProtectModel
    audit: AuditModel

    @property
    def attacks(self) -> list[Attack]:
        """Those of the audit."""
        return attacks_of(self.audit.families())


class Pipeline(NamedTuple):
    """What one seed came to."""

    original: dict[str, float]
    """Accuracy on original test images: unprotected, protected."""
    finetuned: dict[tuple[str, str], float]
    """Accuracy on restricted test images by attack and start."""
    by_level: dict[str, list[float]]
    """Error by noise level of original images, and of restricted ones under the first attack."""
    pictures: dict[str, torch.Tensor]
    seconds: dict[str, float]


def main() -> None:
    """Run the pipelines and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    recipes = Recipes(
        read_recipe(options.recipes / "pretrain.yaml", Pretrain),
        read_recipe(options.recipes / "protect-model.yaml", ProtectModel),
        read_recipe(options.recipes / "audit-model.yaml", AuditModel),
    )
    pipelines = [run_pipeline(recipes, seed) for seed in options.seeds]
    print(f"# Protection of a diffusion model by {options.recipes}\n\n{describe_environment()}")
    print(to_markdown(recipes, pipelines, options.seeds))
    if options.picture is not None:
        rows = [(name, list(images)) for name, images in pipelines[0].pictures.items()]
        options.picture.write_bytes(picture_rows(rows))


def run_pipeline(recipes: Recipes, seed: int) -> Pipeline:
    """Pre-train, protect and attack with one seed."""
    job, sophon = recipes.pretrain, replace(recipes.protect.sophon, seed=seed)
    assert job.denoiser is not None
    original = open_domain(job.original, image_size=job.image_size)
    (config,) = recipes.protect.restricted
    restricted = open_domain(config, image_size=job.image_size)
    seconds, started = {}, time.monotonic()
    training = replace(job.training, seed=seed)
    trained = start_training(new_denoiser(job.denoiser, seed=seed), training)
    for epoch in train(trained, original.train, original.validation, config=training):
        say(f"seed {seed}  epoch {epoch.epoch}  error {1 - epoch.validation_accuracy:.3f}")
    unprotected = trained.model
    assert isinstance(unprotected, Denoiser)
    seconds["pre-training"] = time.monotonic() - started
    state = start(copy.deepcopy(unprotected), sophon)
    domains = Domains(original.train, original.validation, [restricted.train])
    started = time.monotonic()
    for found in protect(state, domains, config=sophon):
        say(
            f"seed {seed}  round {found.round_index}  original {found.original_drop:+.1%}  "
            f"query-loss {found.query_loss:.3f}  fine-tuned {1 - found.finetuned_accuracy:.3f}"
        )
    seconds["protection"] = time.monotonic() - started
    assert isinstance(state.model, Denoiser)
    models = {
        "protected": state.model,
        "unprotected": unprotected,
        "scratch": new_denoiser(job.denoiser, seed=seed + 1000),
    }
    started = time.monotonic()
    pipeline = attacked(recipes, models, original, restricted, seed)
    seconds["audit"] = time.monotonic() - started
    return pipeline._replace(seconds=seconds)


def attacked(
    recipes: Recipes,
    models: Mapping[str, Denoiser],
    original: Domain,
    restricted: Domain,
    seed: int,
) -> Pipeline:
    """Try every attack from every start."""
    finetuned, by_level, pictures = {}, {}, {}
    known = {name: models[name] for name in ("unprotected", "protected")}
    for name, model in known.items():
        by_level[f"original, {name}"] = levels(model, original)
        pictures[f"{name},\nas it is"] = drawn(model)
    for number, attack in enumerate(recipes.attacks):
        for start_name in STARTS:
            model = copy.deepcopy(models[start_name])
            epochs = fine_tune(
                model,
                attack,
                restricted.train,
                restricted.test,
                epochs=recipes.audit.epochs,
                seed=seed,
            )
            finetuned[str(attack), start_name] = [epoch.test_accuracy for epoch in epochs][-1]
            say(
                f"seed {seed}  {attack}  {start_name}  {1 - finetuned[str(attack), start_name]:.3f}"
            )
            if number == 0:
                by_level[f"restricted, fine-tuned, {start_name}"] = levels(model, restricted)
                pictures[f"{start_name},\nfine-tuned"] = drawn(model)
    accuracies = {
        name: accuracy(model, original.test, device=model.device) for name, model in known.items()
    }
    return Pipeline(accuracies, finetuned, by_level, pictures, {})


def levels(model: Denoiser, domain: Domain) -> list[float]:
    """Error on test images by noise level."""
    return error_by_timestep(model, domain.test, num_bins=_NUM_BINS)


def drawn(model: Denoiser) -> torch.Tensor:
    """Images for the picture."""
    return sample(model, num_images=_NUM_IMAGES, num_steps=50, seed=0)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def to_markdown(recipes: Recipes, pipelines: list[Pipeline], seeds: list[int]) -> str:
    """Tables over pipelines, worst attack first."""

    def errors(attack: Attack, start_name: str) -> list[float]:
        return [1 - each.finetuned[str(attack), start_name] for each in pipelines]

    def gain(attack: Attack) -> Estimate:
        return transfer_gain(errors(attack, "scratch"), errors(attack, "protected"))

    before, after = (
        estimate([1 - each.original[name] for each in pipelines])
        for name in ("unprotected", "protected")
    )
    growth = estimate(
        [
            DENOISING.drop(each.original["unprotected"], each.original["protected"])
            for each in pipelines
        ]
    )
    lines = [
        f"Original test error (mean squared error of the predicted noise): {shown(before)} "
        f"unprotected, {shown(after)} protected, {100 * growth.mean:+.1f} % "
        f"(seeds {seeds}).\n",
        f"Restricted test error after {recipes.audit.epochs} epochs:\n",
        "| attack | protected | scratch | unprotected | scratch - protected |",
        "|---|---|---|---|---|",
    ]
    for attack in sorted(recipes.attacks, key=lambda each: -gain(each).mean):
        by_start = [
            shown(estimate(errors(attack, name)))
            for name in ("protected", "scratch", "unprotected")
        ]
        lines.append(f"| {attack} | {' | '.join(by_start)} | {shown(gain(attack))} |")
    lines += [
        f"\nError by fifths of the noise schedule, least noise first; fine-tuned by "
        f"{recipes.attacks[0]}:\n",
        f"| images and model | {' | '.join(map(str, range(1, _NUM_BINS + 1)))} |",
        "|---" * (_NUM_BINS + 1) + "|",
    ]
    for name in pipelines[0].by_level:
        row = torch.tensor([each.by_level[name] for each in pipelines]).mean(dim=0)
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in row.tolist())} |")
    taken = {
        name: estimate([each.seconds[name] for each in pipelines]).mean
        for name in pipelines[0].seconds
    }
    lines.append(
        f"\nSeconds of {torch.get_num_threads()} threads: "
        + ", ".join(f"{name} {value:.0f}" for name, value in taken.items())
        + "."
    )
    return "\n".join(lines)


def shown(value: Estimate) -> str:
    """Mean and half of the 95 % interval."""
    return f"{value.mean:.3f}" + ("" if value.margin is None else f" ± {value.margin:.3f}")


if __name__ == "__main__":
    main()
