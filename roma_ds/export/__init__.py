"""Router files and merged checkpoints."""
