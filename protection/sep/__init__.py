"""SEP: images perturbed by the gradients of one training run's checkpoints (arXiv 2211.12005)."""
