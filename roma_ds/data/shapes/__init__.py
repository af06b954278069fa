"""Shapes of rows: which one a file has, and its rows in our own."""

from roma_ds.data.shapes.detection import Chosen, choose_shape
from roma_ds.data.shapes.row import Misfit, Row

__all__ = ["Chosen", "Misfit", "Row", "choose_shape"]
