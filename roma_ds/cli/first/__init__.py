"""`roma-ds init --data`: a config made from files and a model, and what was found in them."""

from roma_ds.cli.first.command import make_config

__all__ = ["make_config"]
