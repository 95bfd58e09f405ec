"""Routers in Vision Mixture of Experts: a study in JAX and Flax."""

__version__ = "0.1.0"
