"""Tensors that a checkpoint stores in codes: each format decoded part by part."""
