"""Commands on a router file: merging it into a model, publishing it."""
