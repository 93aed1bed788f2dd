"""Scores and pictures of a trained model, and the floor that needs no model."""
