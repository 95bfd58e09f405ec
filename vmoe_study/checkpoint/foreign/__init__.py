"""Checkpoints of other code: V-MoE's own format and `.npz` files of ViTs."""
