"""The cells of a model audit: one attack on one domain, from one start, with one seed."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from protection.audit.attacks import IMAGES_FOR, Attack, Means
from protection.audit.fine_tuning import FineTuningMetrics, fine_tune
from protection.audit.scores import STARTS
from protection.denoisers import Denoiser
from protection.evaluation import accuracy
from protection.released import ReleasedModel
from protection.seeds import derive_seed
from ray_jobs.cells import open_once
from ray_jobs.denoiser_cells import DenoisingAudit, measure_denoiser
from ray_jobs.domains import Domain, DomainConfig, open_domain
from ray_jobs.model_files import ModelDescription, from_scratch, model_from
from ray_jobs.reporting import Row, percent
from ray_jobs.reports.model_report import AttackResult

# File systems take 255 bytes; start, seed and the like come to the name of an attack.
_LONGEST_NAME: Final = 160
# What the domains of a role are called in a cell's key; the first one since the first audits.
_PLACES: Final = {"restricted": "domain", "benign": "benign"}


class Target(NamedTuple):
    """A domain that models are fine-tuned to."""

    role: str
    """restricted: that should fail; benign: that should still work."""
    number: int
    """Among the domains of its role."""


class Cell(NamedTuple):
    """One fine-tuning to run."""

    target: Target
    attack: Attack
    start: str
    seed: int

    def key(self) -> str:
        """Return a name for the finished result, safe in a path."""
        name = str(self.attack).replace(" ", "-")
        if len(name) > _LONGEST_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()[:12]
            name = f"{name[: _LONGEST_NAME - 13]}-{digest}"
        place = f"{_PLACES[self.target.role]}{self.target.number}"
        return f"{place}-{name}-{self.start}-seed{self.seed}"


class Audited(NamedTuple):
    """What is audited, with nothing left to look up; travels to the tasks."""

    protected: str
    unprotected: str
    description: ModelDescription
    original: DomainConfig
    targets: Mapping[Target, DomainConfig]
    unrelated: DomainConfig | None
    epochs: int
    stop_hopeless_after: int | None
    device: str
    denoising: DenoisingAudit = DenoisingAudit()


def cells(plan: Mapping[Target, Sequence[Attack]], *, seeds: Sequence[int]) -> Iterator[Cell]:
    """Every fine-tuning of the attacks on each target, in the order to run them."""
    for seed in seeds:  # seeds outermost: an interrupted audit has whole cells first
        for target, attacks in plan.items():
            for attack in attacks:
                for start in STARTS:
                    yield Cell(target, attack, start, seed)


def fine_tune_cell(audited: Audited, cell: Cell) -> list[Row]:
    """Run the fine-tuning of one cell; its curve in rows that JSON can hold."""
    domain = opened(audited.targets[cell.target], audited)
    model = _start_model(audited, cell).to(audited.device)
    epochs = fine_tune(
        model,
        cell.attack,
        domain.train,
        domain.test,
        epochs=audited.epochs,
        seed=cell.seed,
        means=_means(audited, cell),
        stop_hopeless_after=audited.stop_hopeless_after,
    )
    rows = [_row(metrics) for metrics in epochs]
    if isinstance(model, Denoiser):
        rows[-1] |= measure_denoiser(model, domain.test, audited.denoising, seed=cell.seed)
    return rows


def measure_original(audited: Audited) -> dict[str, float]:
    """Accuracy of the protected and the unprotected model on original test images."""
    test, device = opened(audited.original, audited).test, torch.device(audited.device)
    starts = {"protected": audited.protected, "unprotected": audited.unprotected}
    return {
        name: accuracy(
            model_from(audited.description, weights=weights).to(device), test, device=device
        )
        for name, weights in starts.items()
    }


def measure_denoisers(audited: Audited) -> dict[str, Row]:
    """What else is measured of the protected and the unprotected denoiser, on the same images."""
    test, measured = opened(audited.original, audited).test, {}
    for name, weights in (("unprotected", audited.unprotected), ("protected", audited.protected)):
        model = model_from(audited.description, weights=weights).to(audited.device)
        assert isinstance(model, Denoiser)  # of other models the audit does not ask
        measured[name] = measure_denoiser(model, test, audited.denoising, seed=0)
    return measured


def opened(config: DomainConfig, audited: Audited) -> Domain:
    """Open a domain for the audited model, once in each process."""
    return open_once(open_domain, config, image_size=audited.description.config.image_size)


def show_progress(cell: Cell, curve: list[Row]) -> str:
    """Say how far a cell got and what it was; behind the # is its seed."""
    role = "" if cell.target.role == "restricted" else f"{cell.target.role}  "
    reached = percent(curve[-1]["test_accuracy"])
    return f"{reached:>7}  {cell.start} #{cell.seed}  {role}{cell.attack}"


def to_results(
    audited: Audited, curves: Mapping[Cell, list[Row]], *, seeds: Sequence[int]
) -> list[AttackResult]:
    """What each attack on each domain came to, in the order of the cells."""
    names = _domain_names(audited)
    tried = dict.fromkeys((cell.target, cell.attack) for cell in curves)
    return [
        AttackResult(
            attack=str(attack),
            role=target.role,
            domain=names[target],
            facts=dataclasses.asdict(attack),
            curves={
                start: [curves[Cell(target, attack, start, seed)] for seed in seeds]
                for start in STARTS
            },
        )
        for target, attack in tried
    ]


def _row(metrics: FineTuningMetrics) -> Row:
    row = metrics._asdict()
    if not math.isfinite(metrics.loss):  # of a diverged attack: JSON has no such number
        row["loss"] = None
    if not metrics.stopped:
        del row["stopped"]
    return row


def _start_model(audited: Audited, cell: Cell) -> ReleasedModel:
    if cell.start == "scratch":
        return from_scratch(audited.description, seed=cell.seed)
    weights = audited.protected if cell.start == "protected" else audited.unprotected
    return model_from(audited.description, weights=weights)


def _means(audited: Audited, cell: Cell) -> Means:
    """What the adversary has; images that the attack does not need are not opened."""
    needed = IMAGES_FOR.get(cell.attack.preparation)
    configs = {"original": audited.original, "unrelated": audited.unrelated}
    images = {
        name: opened(config, audited).train
        for name, config in configs.items()
        if name == needed and config is not None
    }
    # Another seed than the from-scratch start's, or redrawing that one would change nothing.
    seed = derive_seed(cell.seed, "fresh")
    return Means(
        fresh=functools.partial(from_scratch, audited.description, seed=seed),
        is_scratch=cell.start == "scratch",
        **images,
    )


def _domain_names(audited: Audited) -> dict[Target, str]:
    """A short description of every domain that no other one of its role has."""
    described = {target: _described(config) for target, config in audited.targets.items()}
    names = [(target.role, name) for target, name in described.items()]
    return {
        target: name if names.count((target.role, name)) == 1 else f"{name}, domain {target.number}"
        for target, name in described.items()
    }


def _described(config: DomainConfig) -> str:
    """What it is read from, without most of the path, which a report need not publish."""
    source = config.train.partition("?")[0].rstrip("/")
    classes = "" if config.classes is None else f" ({', '.join(map(str, config.classes))})"
    return "/".join(source.split("/")[-2:]) + classes
