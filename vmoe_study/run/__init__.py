"""A run: assembled from a config, trained, evaluated, opened again."""
