"""From trained parts to predictions, metrics and the report."""
