"""Studies: variants, seeds and settings over one set of caches, and one report of them all."""
