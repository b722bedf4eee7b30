"""Baselines, one short file each."""
