"""Publishes a row through hf_xet and loads it again."""

import sys

from hf_latentgen import VAEModel
from hf_latentgen.rows.command import publish_command
from hub_common import assert_same_weights, make_families

publish_command(sys.argv[1], "ada/xet")
assert_same_weights(VAEModel.from_pretrained("ada/xet"), make_families()["vae"].model)
