"""What a network reads, and what comes back: token ids, packed batches, results by sequence."""
