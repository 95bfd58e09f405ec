"""Inspection of trained routers: statistics, charts, pictures, a page."""
