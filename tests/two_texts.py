"""A run of two columns of text that takes milliseconds: its recipe, and the rows of its table."""

BRANCH = {"modality": "text", "encoder": {"name": "bytes_cnn", "width": 4}, "expander": [4]}


def recipe(steps: int, **changes) -> dict:
    return {
        "name": "m",
        "source": {"name": "table", "root": "t.csv"},
        "pair": {"name": "cross_modal", "a": "x", "b": "y"},
        "a": BRANCH,
        "b": BRANCH,
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": steps, "batch_size": 4},
        "data": {"workers": 0},
        "evaluate": {"probes": [{"name": "retrieval"}]},
        **changes,
    }


def rows(*numbers: int) -> str:
    """t.csv; every fourth number is for testing."""
    return "id,x,y,split\n" + "".join(
        f"r{i},a {i},b {i},{'test' if i % 4 == 0 else 'train'}\n" for i in numbers
    )
