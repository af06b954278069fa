"""Neighbours among the successful samples: exact search over task embeddings, and the index stage."""

from roma_ds.index.neighbourhood import Neighbourhood
from roma_ds.index.stage import build_neighbours

__all__ = ["Neighbourhood", "build_neighbours"]
