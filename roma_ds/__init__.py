"""Router-only post-training of Mixture-of-Experts language models by Routing Manifold Alignment."""

__version__ = "0.1.0"
