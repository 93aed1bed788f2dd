"""The demo: a page on which people try trained models. `python -m hf_latentgen.app` serves it."""
