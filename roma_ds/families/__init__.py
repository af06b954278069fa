"""Mixture-of-Experts model families: the only place that knows a model by name."""

from roma_ds.families.detection import detect, family_of, has_routers, why_untrained
from roma_ds.families.family import Family
from roma_ds.families.layout import MoELayout, RouterSite
from roma_ds.families.registry import FAMILIES

__all__ = [
    "FAMILIES",
    "Family",
    "MoELayout",
    "RouterSite",
    "detect",
    "family_of",
    "has_routers",
    "why_untrained",
]
