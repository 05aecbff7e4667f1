"""The architecture, enforced: a file imports only from lower layers; files and functions stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"registry", "config", "recipe_file", "recipe_check", "recipe_schema", "batch", "distributed", "video", "video_backends",
     "images", "cells", "write_video", "hashing", "sound"},
    {"modalities", "sources", "tables", "sample_table", "image_sources", "shard_sources", "sequence_sources", "objectives", "model", "optim",
     "metrics", "checkpoint", "sample", "sample_images", "sample_proteins", "sample_molecules", "sample_cells", "transforms", "transform_list",
     "multicrop", "accumulate", "waveforms"},
    {"pairs", "augment", "cross_modal"},
    {"data"},
    {"probes", "classify", "frozen", "ridge", "regression", "retrieval", "zero_shot", "linear_map", "retrieval_pictures", "ranking",
     "pair_match"},
    {"runfolder", "report", "curves", "plots"},
    {"build"},
    {"loop"},
    {"run", "evaluate", "export"},
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
        assert imported(path) <= {"registry", "batch", "hashing", "register_encoder"}
        return
    own = relative.parts[1].removesuffix(".py")
    above = {m for m in imported(path) if m != own and LEVEL[m] > LEVEL[own]}
    assert not above, f"{relative} imports {above} from a higher layer"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno <= 70, f"{path.name}: {node.name} is long"


def test_encoders_is_a_namespace_package():
    assert not (ROOT / "encoders" / "__init__.py").exists()
