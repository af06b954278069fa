"""A tiny mixture-of-experts model, its task suite, and the script that trained it."""
