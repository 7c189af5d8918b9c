"""Contrastive preference optimization (CPO, arXiv 2502.16433), whole and reproducible.

Not to be confused with TRL's `CPOTrainer`, a different method of the same acronym (Xu et al. 2024).
"""

__version__ = "0.1.0"
