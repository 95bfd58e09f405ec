"""Flax modules: routers, mixtures of experts, Vision Transformers."""
