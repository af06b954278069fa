"""The pretrained model over all samples, once: by all ranks, or layer by layer from its files."""
