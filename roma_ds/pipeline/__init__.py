"""The stages in their order, each skipped when it is up to date."""
