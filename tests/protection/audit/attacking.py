"""What tests of attacks share: attacks, tiny networks, and what was changed in them."""

import torch
from hypothesis import strategies as st

from protection.audit.attacks import Attack, Means
from protection.audit.augmentation import AUGMENTATIONS
from protection.audit.families import AttackFamily
from protection.audit.fine_tuning import fine_tune
from protection.audit.methods import AUDIT_METHODS
from protection.audit.preparations import PREPARATIONS
from protection.models import Classifier, ModelConfig, build_model
from protection.schedules import SCHEDULES
from protection.sophon.adversary import OPTIMIZERS
from tests.conftest import random_images

# Tiny instances of networks that are built in different ways.
NETWORKS = {
    "timm/resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "timm/vit_tiny_patch16_224": {
        **{"img_size": 8, "patch_size": 4, "depth": 3},
        **{"embed_dim": 12, "num_heads": 2},
    },
    "timm/convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "patch_size": 1},
    "tests.conftest:TinyNetwork": {},
}


IMAGES, TEST = random_images(40), random_images(30, seed=5)


def attack(**changes: object) -> Attack:
    values = {"method": "all_layers", "optimizer": "sgd", "finetune_lr": 0.05}
    return Attack(**{**values, "batch_size": 16, "weight_decay": 0.0, **changes})


def network(architecture: str = "timm/resnet18", *, seed: int = 7) -> Classifier:
    """A classifier of three classes."""
    config = ModelConfig(
        architecture=architecture, image_size=8, options=dict(NETWORKS[architecture])
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(config, num_classes=3)


def means(architecture: str = "timm/resnet18", *, is_scratch: bool = False) -> Means:
    """All means there are."""
    return Means(
        fresh=lambda: network(architecture, seed=8),
        original=random_images(40, seed=21),
        unrelated=random_images(40, 5, seed=22),
        is_scratch=is_scratch,
    )


def curve(
    model: Classifier, an_attack: Attack, *, epochs: int = 2, seed: int = 3, **options: object
):
    return list(fine_tune(model, an_attack, IMAGES, TEST, epochs=epochs, seed=seed, **options))


def copied(model: Classifier) -> dict[str, torch.Tensor]:
    """The network's tensors as they are now, under the names that its library gives them."""
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): tensor.clone()
        for name, tensor in model.network.state_dict().items()
    }


def changed(before: dict[str, torch.Tensor], model: Classifier) -> set[str]:
    """Names of the network's parameters that are not bit-identical to ``before``."""
    parameters = {
        name.replace("parametrizations.", "").removesuffix(".original"): parameter
        for name, parameter in model.network.named_parameters()
    }
    return {
        name
        for name, parameter in parameters.items()
        if name not in before or not torch.equal(parameter, before[name])
    }


def any_attack() -> st.SearchStrategy[Attack]:
    """Any attack, of a family of one."""
    lists = {
        "methods": st.sampled_from([*AUDIT_METHODS]),
        "optimizers": st.sampled_from([*OPTIMIZERS]),
        "finetune_lrs": st.floats(1e-8, 1e8),
        "batch_sizes": st.integers(1, 10**7),
        "weight_decays": st.floats(0, 1),
        "epochs_factors": st.floats(0.01, 10),
        "schedules": st.sampled_from([*SCHEDULES]),
        "warmup_shares": st.floats(0, 0.99),
        "augmentations": st.sampled_from([*AUGMENTATIONS]),
        "label_smoothings": st.floats(0, 0.99),
        "data_fractions": st.floats(1e-4, 1),
        "lora_ranks": st.integers(1, 100),
        "lora_alphas": st.floats(0.1, 100),
        "layer_decays": st.floats(0.1, 1),
        "preparations": st.sampled_from([*PREPARATIONS]),
        "preparation_epochs": st.integers(1, 50),
        "preparation_lrs": st.floats(1e-8, 1),
        "pruned_shares": st.floats(0.01, 0.99),
    }
    ones = {name: values.map(lambda value: [value]) for name, values in lists.items()}
    return st.builds(AttackFamily, **ones).map(lambda family: family.attacks()[0])
