"""What `ringfence audit-model` takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from protection.audit.families import AttackFamily
from protection.audit.threat_models import THREAT_MODELS
from protection.models import ModelConfig
from protection.names import nearest
from ray_jobs.cells import require_seeds
from ray_jobs.cluster import ClusterConfig
from ray_jobs.denoiser_cells import DenoisingAudit
from ray_jobs.domains import DomainConfig
from ray_jobs.lineage import parent
from ray_jobs.model_files import check_described


@dataclass(frozen=True, kw_only=True)
class AuditModel:
    """Measure what fine-tuning achieves from a protected, an unprotected and a new model."""

    protected: str
    """Location of the protected model, as `protect-model` printed it; or a .safetensors file, with
    `network`, `unprotected`, `original` and `restricted` beside it."""
    output: str
    """Location to commit the report to; must not exist yet."""
    unprotected: str | None = None
    """The model that was protected; null: the one that the protected model's manifest names."""
    network: ModelConfig | None = None
    """What a .safetensors file holds the weights of; null for a committed model, which says so
    itself."""
    original: DomainConfig | None = None
    """Domain that must have kept its accuracy; null: the one it was protected with."""
    restricted: list[DomainConfig] | None = None
    """Domains to fine-tune to; null: those it was protected against."""
    adversary: list[AttackFamily] | None = None
    """Attacks to try: every combination of every family; null: those of `threat_model` alone."""
    threat_model: str | None = None
    """Attacks by name, besides those of `adversary`: short (some ten), default (some thirty) or
    thorough (23,000: a cluster's work, and `unrelated`); null: none, or default where there is no
    `adversary`. Those that keep a head of too few classes for a domain are left out."""
    unrelated: DomainConfig | None = None
    """Domain for the preparation heal_unrelated."""
    benign: list[DomainConfig] | None = None
    """Domains that fine-tuning should still work for; null: that is not measured."""
    benign_adversary: AttackFamily | None = None
    """How these are fine-tuned to; null: by the first family of the attacks that the model can
    undergo."""
    epochs: int = 20
    """Passes over the restricted training images."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Repetitions of every fine-tuning: order of images, redrawn heads, and the from-scratch
    weights."""
    stop_hopeless_after: int | None = None
    """Epochs in a row at chance after which a fine-tuning is given up; null: never. Saves time, and
    misses an adversary that would have got through later."""
    denoising: DenoisingAudit | None = None
    """How images are drawn, where the models are denoisers; null: as by default."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Reject an audit that would measure nothing, or not what it says."""
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; expected at least 1")
        require_seeds(self.seeds)
        check_described("protected", self.protected, self.network)
        for name in ("adversary", "restricted", "benign"):
            if getattr(self, name) == []:
                raise ValueError(f"{name} is empty, so nothing is tried; expected one, or null")
        if self.threat_model is not None and self.threat_model not in THREAT_MODELS:
            raise ValueError(
                f"threat_model is {self.threat_model!r}, which names none; expected "
                f"{', '.join(THREAT_MODELS)} or null{nearest(self.threat_model, THREAT_MODELS)}"
            )
        if self.stop_hopeless_after is not None and self.stop_hopeless_after < 1:
            raise ValueError(
                f"stop_hopeless_after is {self.stop_hopeless_after}; expected at least 1 epoch, or "
                "null"
            )
        if self.benign_adversary is not None and self.benign is None:
            raise ValueError(
                "benign_adversary is given, but benign is null, so it has nothing to do; expected "
                "benign domains"
            )
        self._check_unrelated()

    def _check_unrelated(self) -> None:
        families = [*self.families(), *filter(None, [self.benign_adversary])]
        is_used = any("heal_unrelated" in family.preparations for family in families)
        if is_used and self.unrelated is None:
            raise ValueError(
                "unrelated is null, but heal_unrelated is among the preparations; expected the "
                "domain to heal on"
            )
        if self.unrelated is not None and not is_used:
            raise ValueError(
                f"unrelated is {self.unrelated.train}, but no attack uses it; expected null, or "
                "heal_unrelated among the preparations"
            )

    def parents(self) -> dict[str, object]:
        """The protected model, as it is now."""
        return parent("protected", self.protected)

    def families(self) -> list[AttackFamily]:
        """The threat model: what `adversary` lists, then what `threat_model` names."""
        return [*(self.adversary or []), *self.preset()]

    def preset(self) -> Sequence[AttackFamily]:
        """What `threat_model` names."""
        if self.threat_model is None:
            return () if self.adversary else THREAT_MODELS["default"]
        return THREAT_MODELS[self.threat_model]
