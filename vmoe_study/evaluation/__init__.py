"""Evaluators: objects that measure parameters on data of their own."""
