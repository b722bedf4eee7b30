"""Hyperparameter search: trials on Ray Tune that never train the same stage twice."""
