"""Equations 5, 6, 7 and 9 of the method, as pure functions."""
