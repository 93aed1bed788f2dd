"""The house rules of CONTRIBUTING.md that ruff, pyright and import-linter do not hold.

Each checker is also shown something it must refuse.
"""

import ast
import io
import re
import subprocess
import tokenize
from importlib.metadata import requires
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hf_latentgen

PACKAGE = "src/hf_latentgen"
MAX_FILE_LINES = 450
# Of code: docstrings, comments and blank lines are free.
MAX_PACKAGE_LINES = 12_000
MAX_SCRIPT_LINES = 120
MAX_FILE_BYTES = 3 * 2**20
# So that everybody can score every row again, and a clone stays small.
MAX_WEIGHT_BYTES, MAX_WEIGHT_BYTES_TOGETHER = 20 * 2**20, 80 * 2**20
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
COPYRIGHT = "# Copyright 2026 The hf-latentgen authors. Apache-2.0."
# What models, their configurations and their training are called; the rooms above ask a model what it can.
MODEL_CLASS = re.compile(r"\b(VAE|VLAE|AAE|LocalTransformer\w*)(Model|Config|For\w+|Output)\b")
KNOW_MODELS = ("models", "training", "families", "__init__.py")

SHAPE_OR_DIRECTIVE = re.compile(r"# (\[.*\]|noqa: .+|type: ignore\[.+\].*|pyright: ignore\[.+\].*)$")
BANNER = re.compile(r"#\s*([-=#*~_])\1{3,}")
PRIVATE_PATH = re.compile(r"(?<![\w.~<>/])/(root|home|Users|work|tmp|mnt)/\w")


def python_files(folder: Path) -> dict[str, str]:
    """Texts of the Python files below a folder by their path in it."""
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))}


def code_lines(text: str) -> int:
    """Number of lines that hold code."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not is_docstring:
            # A compound statement ends with its last child, which is counted on its own.
            last = node.body[0].lineno - 1 if getattr(node, "body", None) else node.end_lineno
            lines |= set(range(node.lineno, last + 1))
    written = text.splitlines()
    return sum(1 for number in lines if written[number - 1].strip() and not written[number - 1].strip().startswith("#"))


def size_violations(package: dict[str, str], scripts: dict[str, str]) -> list[str]:
    violations, total = [], sum(map(code_lines, package.values()))
    for files, most in ((package, MAX_FILE_LINES), (scripts, MAX_SCRIPT_LINES)):
        counts = {name: len(text.splitlines()) for name, text in files.items()}
        violations += [f"{name}: {count} lines, at most {most}" for name, count in counts.items() if count > most]
    return violations + ([f"src: {total} lines, under {MAX_PACKAGE_LINES}"] if total >= MAX_PACKAGE_LINES else [])


def naming_violations(package: dict[str, str]) -> list[str]:
    """Files that name a model class and lie above the rooms that may."""
    others = {name: text for name, text in package.items() if name.split("/")[0] not in KNOW_MODELS}
    return [f"{name}: {found.group()}" for name, text in others.items() for found in MODEL_CLASS.finditer(text)]


def flatness_violations(models: dict[str, str]) -> list[str]:
    """Imports in models/ that transformers would not copy beside a checkpoint."""
    violations = []
    for name, text in models.items():
        for node in ast.walk(ast.parse(text)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                is_sibling = node.level == 1 and node.module is not None and "." not in node.module
                modules = [] if is_sibling else ["." * node.level + (node.module or "")]
            bad = [module for module in modules if module.startswith((".", "hf_latentgen"))]
            violations += [f"{name}: {module} is not of the form `from .x import y`" for module in bad]
    return violations


def comment_violations(name: str, text: str) -> list[str]:
    """Comments that do not say why, and code that probes for attributes."""
    violations = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            trails = token.line[: token.start[1]].strip() != ""
            if (trails and not SHAPE_OR_DIRECTIVE.match(token.string)) or BANNER.match(token.string):
                violations.append(f"{name}:{token.start[0]} {token.string}: only a shape may trail, and no banner")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            violations.append(f"{name}:{node.lineno}: hasattr probes for what should be known")
    return violations


def file_violations(root: Path, names: list[str]) -> list[str]:
    """Pickles, files too large for a clone, and texts that name a path of somebody's own machine."""
    violations, weights = [], 0
    for name in names:
        path = root / name
        size, is_weights = path.stat().st_size, path.suffix == ".safetensors"
        weights += size if is_weights else 0
        most = MAX_WEIGHT_BYTES if is_weights else MAX_FILE_BYTES
        if path.suffix in PICKLES:
            violations.append(f"{name}: a pickle can run code when it is loaded")
        if size > most:
            violations.append(f"{name}: {size} bytes, at most {most}")
        elif path.suffix in {".md", ".json", ".yaml", ".yml", ".py", ".toml", ".txt", ".jinja"}:
            found = PRIVATE_PATH.search(path.read_text(encoding="utf-8"))
            if found and name != f"tests/{Path(__file__).name}":
                violations.append(f"{name}: names the path {found.group()}...")
    if weights > MAX_WEIGHT_BYTES_TOGETHER:
        violations.append(f"weights: {weights} bytes together, at most {MAX_WEIGHT_BYTES_TOGETHER}")
    return violations


@pytest.fixture(scope="module")
def package(repository):
    return python_files(repository / PACKAGE)


@pytest.fixture(scope="module")
def tracked(repository) -> list[str]:
    """Names of the files that a commit of everything would hold."""
    if not (repository / ".git").exists():
        pytest.skip("not a git clone, so nothing says which files belong to it")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (repository / name).is_file()]


def test_sizes(repository):
    assert size_violations(python_files(repository / "src"), python_files(repository / "scripts")) == []


def test_size_checker_refuses():
    most, line = MAX_PACKAGE_LINES // MAX_FILE_LINES, "x = 1\n"
    package = {f"{number}.py": line * MAX_FILE_LINES for number in range(most)}
    package["described.py"] = '"""Told."""\n\n# Why.\ndef f():\n    """Returns\n    1."""\n    return 1\n' * 40
    scripts = {"short.py": line * MAX_SCRIPT_LINES}
    assert size_violations(package, scripts) == []
    package["long.py"], scripts["longer.py"] = line * (MAX_FILE_LINES + 1), line * (MAX_SCRIPT_LINES + 1)
    found = [violation.split(":")[0] for violation in size_violations(package, scripts)]
    assert found == ["long.py", "longer.py", "src"]


def test_only_models_training_and_families_name_a_model_class(package):
    assert naming_violations(package) == []


def test_naming_checker_refuses():
    text = "from hf_latentgen.models.modeling_vae import VAEModel\n"
    assert naming_violations({"hub/loading.py": text, "app.py": "x = AAEForImageClassification"}) == [
        "hub/loading.py: VAEModel",
        "app.py: AAEForImageClassification",
    ]
    fine = {"families/vae.py": text, "__init__.py": text, "hub/code.py": "from transformers import AutoModel"}
    assert naming_violations(fine) == []
    # Every class of a model that the package has is one that the checker knows.
    known = [name for name in hf_latentgen.__all__ if name.endswith(("Model", "Config")) or "For" in name]
    assert [name for name in known if not MODEL_CLASS.fullmatch(name)] == []


def test_models_are_flat(repository):
    assert flatness_violations(python_files(repository / PACKAGE / "models")) == []


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        ("from hf_latentgen.models.b import x", True),
        ("import hf_latentgen", True),
        ("from . import b", True),
        ("from .b.c import x", True),
        ("def f():\n    from ..data import x", True),
        ("from .b import x\nimport torch\nfrom torch import nn", False),
    ],
)
def test_flatness_checker_refuses(line, is_refused):
    assert bool(flatness_violations({"a.py": line})) == is_refused


def test_comments_say_why(repository):
    files = [item for folder in ("src", "scripts", "benchmarks") for item in python_files(repository / folder).items()]
    assert [violation for name, text in files for violation in comment_violations(name, text)] == []


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("x = 1  # the first one\n", True),
        ("# ---------- helpers ----------\n", True),
        ("hasattr(x, 'y')\n", True),
        ("x = y  # [B, C, H, W]\n", False),
        ("import x  # noqa: F401 - registers its classes.\n", False),
        ("# Because the last batch is smaller.\n", False),
    ],
)
def test_comment_checker_refuses(text, is_refused):
    assert bool(comment_violations("a.py", text)) == is_refused


def test_files_of_models_start_with_the_copyright_line(repository):
    # transformers copies these files beside published checkpoints, away from LICENSE.
    files = {name: text for name, text in python_files(repository / PACKAGE / "models").items() if text}
    named = [name for name, text in files.items() if not text.startswith(f"{COPYRIGHT}\n")]
    assert named in ([], ["__init__.py"])


def test_tracked_files_are_small_safe_and_impersonal(repository, tracked):
    assert file_violations(repository, tracked) == []


def test_file_checker_refuses(tmp_path):
    for name, size in (("a", MAX_WEIGHT_BYTES), ("b", MAX_WEIGHT_BYTES + 1), ("c", MAX_WEIGHT_BYTES)):
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            # Without writing so many zeros.
            file.truncate(size)
    for name, text in {
        "weights.pt": "",
        "large.txt": "x" * (MAX_FILE_BYTES + 1),
        "results.json": '{"config": "/home/somebody/configs/a.yaml"}',
        "fine.md": "See configs/a.yaml and https://example.org/home/page.",
    }.items():
        (tmp_path / name).write_text(text)
    names = sorted(path.name for path in tmp_path.iterdir())
    found = [violation.split(":")[0] for violation in file_violations(tmp_path, names)]
    assert found == ["b.safetensors", "large.txt", "results.json", "weights.pt"]
    several = [*names, "c.safetensors", "c.safetensors"]
    assert file_violations(tmp_path, several)[-1].startswith("weights: ")


def test_version_is_the_same_everywhere(repository):
    number = hf_latentgen.__version__
    assert 'dynamic = ["version"]' in (repository / "pyproject.toml").read_text(encoding="utf-8")
    assert f"version: {number}" in (repository / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{number}]" in (repository / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_name_one_allowed_version_of_each_dependency(repository):
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pinned}
    assert len(versions) == len(pinned)
    assert {specifier.operator for specifier in versions.values()} == {"=="}
    for requirement in map(Requirement, requires("hf-latentgen")):
        extras = [
            extra
            for extra in ("dev", "browser", "app")
            if requirement.marker and requirement.marker.evaluate({"extra": extra})
        ]
        # An extra may take in another one of this package.
        if requirement.name != "hf-latentgen" and (requirement.marker is None or extras):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)].version), requirement


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accelerate_accepts_the_launch_files(repository, name):
    launch = load_config_from_file(str(repository / "configs" / "accelerate" / f"{name}.yaml"))
    assert launch.num_processes == 2
    assert launch.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[name]


def test_only_the_page_itself_needs_gradio(repository):
    # What it computes is tested where the extra is not installed, as by `make test`.
    files = python_files(repository / PACKAGE)
    assert {name for name, text in files.items() if "import gradio" in text} == {
        "app/interface.py",
        "app/parts.py",
        "app/tabs.py",
    }
