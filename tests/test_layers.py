"""The architecture, enforced: a file imports only from its own or lower layers, never in a circle; files and
functions stay small."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [  # files and packages
    {"sliding", "library", "tokens", "wants", "orders", "fitted"},
    {"parts", "options"},
    {"registry", "batch", "distributed", "facts"},
    {"recipe", "files", "video"},
    {"transforms", "objectives", "optim", "metrics", "accumulate", "surprise"},
    {"latents", "conditions", "batch_norm", "towers", "agreeing"},
    {"modalities", "sources"},
    {"samples", "model", "predictors"},
    {"pairs"},
    {"data"},
    {"packing"},
    {"probes"},
    {"report"},
    {"embeddings"},
    {"training"},
    {"exporting"},
    {"run", "evaluate", "export", "check", "pack", "compare", "embed", "search", "explore", "hub"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
FILES = sorted(p for folder in ("vicjoint", "encoders") for p in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vicjoint":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("vicjoint.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    relative = path.relative_to(ROOT)
    if relative.name == "__init__.py" and relative.parent.name == "vicjoint":
        return
    if relative.parts[0] == "encoders":
        assert imported(path) <= {
            "registry",
            "parts",
            "options",
            "library",
            "tokens",
            "batch",
            "facts",
            "register_encoder",
        }
        return
    own = relative.parts[1].removesuffix(".py")
    above = {m for m in imported(path) if m != own and LEVEL[m] > LEVEL[own]}
    assert not above, f"{relative} imports {above} from a higher layer"


def test_every_file_has_a_layer_and_every_layer_its_files():
    there = {
        p.stem
        for p in (ROOT / "vicjoint").iterdir()
        if (p.suffix == ".py" or (p / "__init__.py").exists()) and p.name != "__init__.py"
    }
    assert there == set(LEVEL)


def test_no_two_files_import_each_other_in_a_circle():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    graph = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                graph[name] |= {
                    full if (full := f"{node.module}.{alias.name}") in names else node.module
                    for alias in node.names
                }
    list(
        graphlib.TopologicalSorter(
            {name: used & set(names) - {"vicjoint"} for name, used in graph.items()}
        ).static_order()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno <= 70, f"{path.name}: {node.name} is long"


def test_encoders_is_a_namespace_package():
    assert not (ROOT / "encoders" / "__init__.py").exists()
