"""Lists of recommendations for sessions that a person brings, by a system of a run."""
