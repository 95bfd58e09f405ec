"""Recipes: one file each, a lab record of what it reproduces."""
