"""Recipes: one file each, written as a lab record of what it reproduces."""
