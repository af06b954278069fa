"""Train the chosen routers under a DeepSpeed engine, with the live manifold term."""
