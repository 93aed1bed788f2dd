"""Publishes rows of model_cards under the names on their cards."""

import runpy
import sys
from pathlib import Path

repository = Path(sys.argv[1])
publish_main = runpy.run_path(str(repository / "scripts" / "publish.py"))["main"]
for row in sys.argv[2:]:
    publish_main([str(repository / "model_cards" / row), "--repo-id", f"hf-latentgen/{row}"])
