"""Checkpoints that others write: V-MoE's, msgpack, ViT's .npz."""
