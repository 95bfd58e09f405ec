"""Evaluators: measure parameters on data sets."""
