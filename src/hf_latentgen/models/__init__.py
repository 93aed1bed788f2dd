# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Models, their configurations and their processors; a flat folder, so that a checkpoint can carry its code."""
