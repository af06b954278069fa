"""Hidden states that enter the first trained layer, kept on disk, and batches of them."""
