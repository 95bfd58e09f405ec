"""From finished runs to the tables and figures of a study."""
