"""Figures as files, text in any script, and the layout of pages."""
