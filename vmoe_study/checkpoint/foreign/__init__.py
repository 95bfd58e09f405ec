"""Checkpoints of other code: V-MoE's format and `.npz` files of ViTs."""
