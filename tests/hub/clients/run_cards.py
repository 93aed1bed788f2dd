"""Runs the Python examples of published cards, each in a folder of its own. Prints what became of each, as JSON."""

import json
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

from huggingface_hub import hf_hub_download

results = {}
for repo_id in sys.argv[1:]:
    card = Path(hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in blocks:
                exec(block, {"__name__": "__main__"})
            results[repo_id] = {
                "error": "",
                "blocks": len(blocks),
                "files": [path.name for path in Path(folder).iterdir()],
            }
        except Exception:
            results[repo_id] = {"error": traceback.format_exc(), "blocks": len(blocks), "files": []}
        os.chdir("/")
print(json.dumps(results))
