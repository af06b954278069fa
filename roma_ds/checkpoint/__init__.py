"""Files on disk to tensors in memory, part by part."""
