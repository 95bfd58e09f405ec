"""Saving, restoring, importing and exporting parameters."""
