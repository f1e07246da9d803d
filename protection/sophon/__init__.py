"""SOPHON: non-fine-tunable learning (arXiv 2404.12699)."""
