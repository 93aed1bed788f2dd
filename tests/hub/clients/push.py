"""Publishes a row of each family with its code, and pushes model and processor as transformers does."""

import runpy
import sys
import time
from pathlib import Path

from hf_latentgen.cards.publishing import prepare_upload, publish
from hub_common import make_families, write_row

repository, folder = map(Path, sys.argv[1:])
families = make_families()
# What the first push of a process imports and compiles is not the push.
families["vae"].model.push_to_hub("ada/warm")
for name, family in families.items():
    start = time.perf_counter()
    family.model.push_to_hub(f"ada/{name}")
    family.processor.push_to_hub(f"ada/{name}")
    print(f"push {name} {time.perf_counter() - start:.2f} s")

publish_main = runpy.run_path(str(repository / "scripts" / "publish.py"))["main"]
for name, family in families.items():
    write_row(folder / name, family)
    assert publish_main([str(folder / name), "--repo-id", f"{name}-code", "--with-code", "--private"]) == 0

# Again, unchanged: no commit is made, the last one comes back.
upload = prepare_upload(folder / "vae", "ada/vae-code", with_code=True)
print("again", publish(upload).oid)

write_row(folder / "sharded", families["vae"], max_shard_size=20_000)
publish_main([str(folder / "sharded"), "--repo-id", "ada/sharded"])
publish_main([str(folder / "vae"), "--repo-id", "ada/vae", "--revision", "measured"])
publish_main([str(folder / "vae"), "--repo-id", "bob/vae", "--create-pr"])
