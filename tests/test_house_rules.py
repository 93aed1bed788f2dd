"""The house rules of CONTRIBUTING.md that a program can check. Each checker is also shown something it must refuse."""

import ast
import io
import re
import subprocess
import tokenize
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "hf_latentgen"
# An import never goes to a higher floor than its own.
FLOORS = {
    # Cards publish pipelines, which know models alone.
    **dict.fromkeys(("models", "pipelines", "cards", "metrics"), 0),
    **dict.fromkeys(("data", "evaluation", "coding"), 1),
    **dict.fromkeys(("training", "app"), 2),
}
MAX_FILE_LINES = 450
MAX_PACKAGE_LINES = 11_400
MAX_SCRIPT_LINES = 120
MAX_FILE_BYTES = 3 * 2**20
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
COPYRIGHT = "# Copyright 2026 The hf-latentgen authors. Apache-2.0."

SHAPE_OR_DIRECTIVE = re.compile(r"# (\[.*\]|noqa: .+|type: ignore\[.+\].*|pyright: ignore\[.+\].*)$")
BANNER = re.compile(r"#\s*([-=#*~_])\1{3,}")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b(?!.*https?://)")
FIRST_PERSON = re.compile(r"\b(we|our|ours|my|let's)\b", re.IGNORECASE)
PRIVATE_PATH = re.compile(r"(?<![\w.~<>/])/(root|home|Users|work|tmp|mnt)/\w")


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, source: Path) -> list[tuple[str, ast.Import | ast.ImportFrom]]:
    """Every module of the package that a file imports, by its absolute name, wherever in the file the import stands."""
    modules = {module_name(file, source) for file in source.rglob("*.py")}
    package = path.relative_to(source).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names if alias.name.split(".")[0] == PACKAGE]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *filter(None, [node.module])))
            if name.split(".")[0] == PACKAGE:
                submodules = [f"{name}.{alias.name}" for alias in node.names if f"{name}.{alias.name}" in modules]
                found += [(submodule, node) for submodule in submodules or [name]]
    return found


def import_violations(source: Path) -> list[str]:
    """Imports that go up, that go through the front door of the package, or that are not flat in models/."""
    violations = []
    for path in sorted((source / PACKAGE).rglob("*.py")):
        name = module_name(path, source)
        if name == PACKAGE:
            continue
        own = name.split(".")[1]
        if own not in FLOORS:
            violations.append(f"{name}: {own} has no floor")
            continue
        for target, node in imported_modules(path, source):
            where = f"{name}:{node.lineno}"
            if target == PACKAGE:
                violations.append(f"{where} imports {PACKAGE} itself, name the module instead")
            elif FLOORS.get(target.split(".")[1], 99) > FLOORS[own]:
                violations.append(f"{where} imports upwards: {target}")
            flat = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and "." not in node.module
            if own == "models" and not flat:
                violations.append(f"{where} is not of the form `from .x import y`")
    return violations


def import_circle(source: Path) -> list[str]:
    """The modules of one circle of imports, or an empty list."""
    graph = {
        module_name(path, source): [target for target, _ in imported_modules(path, source)]
        for path in (source / PACKAGE).rglob("*.py")
    }
    finished: set[str] = set()

    def search(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in finished:
            for target in graph.get(name, []):
                if circle := search(target, [*trail, name]):
                    return circle
            finished.add(name)
        return []

    return next((circle for name in graph if (circle := search(name, []))), [])


def size_violations(root: Path) -> list[str]:
    def count_lines(folder: str) -> dict[str, int]:
        paths = (root / folder).rglob("*.py")
        return {str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}

    package, scripts = count_lines("src"), count_lines("scripts")
    return [
        *(
            f"{name}: {count} lines, at most {MAX_FILE_LINES}"
            for name, count in package.items()
            if count > MAX_FILE_LINES
        ),
        *(
            f"{name}: {count} lines, at most {MAX_SCRIPT_LINES}"
            for name, count in scripts.items()
            if count > MAX_SCRIPT_LINES
        ),
        *(
            [f"src: {total} lines, under {MAX_PACKAGE_LINES}"]
            if (total := sum(package.values())) >= MAX_PACKAGE_LINES
            else []
        ),
    ]


def docstring_violations(path: Path) -> list[str]:
    """Public functions, classes and methods without a docstring that starts on its first line."""
    violations = []

    def visit(node: ast.AST, qualified: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name[0] == "_":
                continue
            if not (ast.get_docstring(child, clean=False) or "").split("\n")[0].strip():
                violations.append(f"{path.name}: {qualified}{child.name}")
            if isinstance(child, ast.ClassDef):
                visit(child, f"{qualified}{child.name}.")

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return violations


def comment_violations(path: Path) -> list[str]:
    """Comments that do not say why, and code that probes for attributes."""
    text = path.read_text(encoding="utf-8")
    violations = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        where = f"{path.name}:{token.start[0]} {token.string}"
        if token.line[: token.start[1]].strip() and not SHAPE_OR_DIRECTIVE.match(token.string):
            violations.append(f"{where}: only a shape may trail, a why stands above its line")
        if BANNER.match(token.string):
            violations.append(f"{where}: banner")
        if UNFINISHED.search(token.string):
            violations.append(f"{where}: unfinished, without a link")
        if FIRST_PERSON.search(token.string):
            violations.append(f"{where}: first person")
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and FIRST_PERSON.search(ast.get_docstring(node) or ""):
            violations.append(
                f"{path.name}: first person in the docstring that starts {ast.get_docstring(node)[:40]!r}"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            violations.append(f"{path.name}:{node.lineno}: hasattr probes for what should be known")
    return violations


def file_violations(root: Path, names: list[str]) -> list[str]:
    """Pickles, files too large for a clone, and texts that name a path of somebody's own machine."""
    violations = []
    for name in names:
        path = root / name
        if path.suffix in PICKLES:
            violations.append(f"{name}: a pickle can run code when it is loaded")
        if path.stat().st_size > MAX_FILE_BYTES:
            violations.append(f"{name}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES}")
        elif path.suffix in {".md", ".json", ".yaml", ".yml", ".py", ".toml", ".txt", ".jinja"}:
            found = PRIVATE_PATH.search(path.read_text(encoding="utf-8"))
            if found and name != f"tests/{Path(__file__).name}":
                violations.append(f"{name}: names the path {found.group()}...")
    return violations


@pytest.fixture(scope="module")
def tracked(repository) -> list[str]:
    """Names of the files that a commit of everything would hold."""
    if not (repository / ".git").exists():
        pytest.skip("not a git clone, so nothing says which files belong to it")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (repository / name).is_file()]


def python_files(repository: Path, *folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((repository / folder).rglob("*.py"))]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_imports_go_down_and_models_are_flat(repository):
    assert import_violations(repository / "src") == []


def test_imports_form_no_circle(repository):
    assert import_circle(repository / "src") == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("models/a.py", "from hf_latentgen.models.b import x", "from .x import y"),
        ("models/a.py", "from . import b", "from .x import y"),
        ("models/a.py", "from ..data import x", "upwards"),
        ("data.py", "from hf_latentgen.training.trainer import x", "upwards"),
        ("evaluation/a.py", "def f():\n    from ..training import trainer", "upwards"),
        ("training/a.py", "import hf_latentgen", "itself"),
        ("training/a.py", "from .. import data, VAEModel", None),
        ("helpers.py", "", "no floor"),
        ("models/a.py", "from .b import x", None),
        ("training/a.py", "from hf_latentgen.data import x", None),
    ],
)
def test_import_checker_refuses(tmp_path, file, line, complaint):
    for name in ("__init__", "data", "models/__init__", "models/b", "training/__init__", "training/trainer"):
        write(tmp_path / PACKAGE / f"{name}.py", "")
    write(tmp_path / PACKAGE / file, line)
    found = import_violations(tmp_path)
    assert any(complaint in violation for violation in found) if complaint else found == []


def test_circle_checker_refuses(tmp_path):
    write(tmp_path / PACKAGE / "models" / "a.py", "from .b import x")
    write(tmp_path / PACKAGE / "models" / "b.py", "from .c import x")
    write(tmp_path / PACKAGE / "models" / "c.py", "")
    assert import_circle(tmp_path) == []
    write(tmp_path / PACKAGE / "models" / "c.py", "from .a import x")
    assert len(set(import_circle(tmp_path))) == 3


def test_sizes(repository):
    assert size_violations(repository) == []


def test_size_checker_refuses(tmp_path):
    for number in range(MAX_PACKAGE_LINES // MAX_FILE_LINES):
        write(tmp_path / "src" / f"{number}.py", "\n" * 450)
    write(tmp_path / "scripts" / "short.py", "\n" * 120)
    assert size_violations(tmp_path) == []
    write(tmp_path / "src" / "long.py", "\n" * 451)
    write(tmp_path / "scripts" / "long.py", "\n" * 121)
    assert [violation.split(":")[0] for violation in size_violations(tmp_path)] == [
        "src/long.py",
        "scripts/long.py",
        "src",
    ]


def test_public_names_have_docstrings(repository):
    files = python_files(repository, "src", "scripts", "benchmarks")
    assert [violation for path in files for violation in docstring_violations(path)] == []


def test_docstring_checker_refuses(tmp_path):
    text = (
        'class A:\n    """Has one."""\n    def f(self): ...\n    def _g(self): ...\ndef h():\n    """\n    Late."""\n'
    )
    assert docstring_violations(write(tmp_path / "a.py", text)) == ["a.py: A.f", "a.py: h"]


def test_comments_say_why(repository):
    files = python_files(repository, "src", "scripts", "benchmarks")
    assert [violation for path in files for violation in comment_violations(path)] == []


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("x = 1  # the first one\n", True),
        ("# ---------- helpers ----------\n", True),
        ("# TODO: later\n", True),
        ("# Here we add one.\n", True),
        ('"""What we do."""\n', True),
        ("hasattr(x, 'y')\n", True),
        ("x = y  # [B, C, H, W]\n", False),
        ("import x  # noqa: F401 - registers its classes.\n", False),
        ("# Because the last batch is smaller.\n", False),
    ],
)
def test_comment_checker_refuses(tmp_path, text, refused):
    assert bool(comment_violations(write(tmp_path / "a.py", text))) == refused


def test_files_of_models_start_with_the_copyright_line(repository):
    # transformers copies these files beside published checkpoints, away from LICENSE.
    files = [
        p for p in python_files(repository, f"src/{PACKAGE}/models") if p.stat().st_size and p.name != "__init__.py"
    ]
    assert [path.name for path in files if not path.read_text(encoding="utf-8").startswith(f"{COPYRIGHT}\n")] == []


def test_tracked_files_are_small_safe_and_impersonal(repository, tracked):
    assert file_violations(repository, tracked) == []


def test_file_checker_refuses(tmp_path):
    write(tmp_path / "weights.pt", "")
    write(tmp_path / "large.safetensors", "x" * (MAX_FILE_BYTES + 1))
    write(tmp_path / "results.json", '{"config": "/home/somebody/configs/a.yaml"}')
    write(tmp_path / "fine.md", "See configs/a.yaml and https://example.org/home/page.")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [violation.split(":")[0] for violation in file_violations(tmp_path, names)] == [
        "large.safetensors",
        "results.json",
        "weights.pt",
    ]


def test_version_is_the_same_everywhere(repository):
    number = version("hf-latentgen")
    assert f'version = "{number}"' in (repository / "pyproject.toml").read_text(encoding="utf-8")
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
