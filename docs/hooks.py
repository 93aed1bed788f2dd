"""What the site holds: pages and files of the repository, under the paths that they have in a clone.

So one relative link leads to the same file on the site, in a clone and on a page that shows the repository, and
`mkdocs build --strict` checks all of them.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"),
    *("docs/**/*.md", "docs/**/*.png", "docs/*.css", "notebooks/*.ipynb", "space/*.png"),
    *("configs/**/*.yaml", "benchmarks/*.py", "benchmarks/*.json", "benchmarks/*.png"),
    *("model_cards/**/README.md", "model_cards/**/*.png", "model_cards/*/results.json"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the theme, and those of the repository in place of those that mkdocs found in its folder."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for pattern in PUBLISHED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
