"""What the tests of cards share."""

import copy

from hf_latentgen.evaluation.results import Results
from hf_latentgen.rows.cards import render_card

REPO_ID = "hf-latentgen/vae_digits"
CONFIG = {"architecture": "course", "image_size": 8, "latent_dim": 2, "hidden_channels": [4, 4, 4]}


def change(results, path, value):
    """A copy of `results` with the entry at `path` replaced."""
    changed = copy.deepcopy(results)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return changed


def render(results, pictures=("samples.png",), repo_id=REPO_ID, choices=None):
    """The card of the contents of a `results.json`."""
    return render_card(Results.from_dict(results), repo_id, pictures, choices=choices)
