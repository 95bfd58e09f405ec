"""Routing as arrays in, arrays out: scores, choices, plans, losses."""
