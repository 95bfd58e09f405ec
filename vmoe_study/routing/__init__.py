"""Routing as pure functions on arrays: affinities, choices, plans, losses."""
