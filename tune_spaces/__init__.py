"""What a sweep may try: Ray Tune search spaces, keyed by recipe field."""

from typing import Final

from ray.tune.search.sample import Domain

from tune_spaces.adversary import ADVERSARY, NEW_HEAD_ADVERSARY
from tune_spaces.pretraining import PRETRAINING
from tune_spaces.sep import SEP, SEP_MEMBERS
from tune_spaces.sophon import SOPHON, SOPHON_DENOISER, SOPHON_RATES

SPACES: Final[dict[str, dict[str, dict[str, Domain]]]] = {
    "protect-model": {
        "sophon": SOPHON,
        "sophon-rates": SOPHON_RATES,
        "sophon-denoiser": SOPHON_DENOISER,
    },
    "protect-data": {"sep": SEP, "sep-members": SEP_MEMBERS},
    "pretrain": {"pretraining": PRETRAINING},
    "audit-model": {"adversary": ADVERSARY, "new-head-adversary": NEW_HEAD_ADVERSARY},
}
"""By job, by name."""
