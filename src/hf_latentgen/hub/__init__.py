"""The Hub: the one loader of checkpoints, the files that are published, the code that travels with a checkpoint."""
