"""Rows: a recipe becomes a training, a training becomes results, results become cards and tables."""
