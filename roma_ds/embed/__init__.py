"""The embed stage: task embeddings of the samples by a frozen text-embedding model."""

from roma_ds.embed.stage import embed

__all__ = ["embed"]
