"""Trainers, their arguments and callbacks, and the recipes that the configs describe."""
