"""Answers that a model writes."""
