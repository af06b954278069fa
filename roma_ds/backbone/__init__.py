"""The frozen network: loading, batches, live routing, and the forward pass that every stage shares."""
