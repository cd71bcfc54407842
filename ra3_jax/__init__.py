"""RA3 mid-training for code language models, in JAX: text -> tokens -> policy -> EM -> checkpoint."""

__version__ = "0.1.0"
