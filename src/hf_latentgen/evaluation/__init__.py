"""Scores of arrays and of models, their schema, pictures, and the baselines that need no model."""
