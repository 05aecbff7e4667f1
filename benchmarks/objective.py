"""The objectives beside their plain forms, in one run: time, peak memory and error.

    python -m benchmarks.objective [--quick] [--json FILE]

Time: forward and backward, float32, ratios of interleaved rounds. Memory: over the inputs, each figure from a
fresh process (Linux). Error: value and gradient with respect to z_a against the official form in float64 on
the same inputs.
"""

import argparse
import json

import torch

from benchmarks import plain
from benchmarks.measure import in_fresh_process, interleaved, peak_mib, ratio, table, write
from vicjoint.objectives import BarlowTwins, InfoNCE, VICReg

# name -> (ours, plain forms)
OBJECTIVES = {
    "vicreg": (VICReg(), {"official": plain.official, "mask": plain.boolean_mask}),
    "barlow_twins": (BarlowTwins(), {"plain": plain.barlow_twins}),
    "nt_xent": (InfoNCE(0.1, form="nt_xent"), {"plain": plain.nt_xent}),
    "clip": (InfoNCE(0.1), {"plain": plain.clip}),
}
SHAPES = {
    "vicreg": [
        (64, 512),
        (64, 2048),
        (64, 8192),
        (256, 512),
        (256, 2048),
        (256, 8192),
        (1024, 512),
        (1024, 2048),
        (1024, 8192),
        (2048, 512),
        (2048, 2048),
        (2048, 8192),
        (65536, 256),
        (16384, 1024),
    ],
    "barlow_twins": [(64, 2048), (256, 2048), (256, 8192), (1024, 2048), (2048, 512)],
    "nt_xent": [(256, 512), (2048, 512)],
    "clip": [(256, 512), (2048, 512)],
}
MEMORY = {
    "vicreg": [(256, 2048), (256, 8192), (2048, 8192)],
    "barlow_twins": [(256, 8192)],
    "nt_xent": [(2048, 512)],
}


def inputs(n: int, d: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_a = torch.randn(n, d, generator=generator)
    z_b = 0.7 * z_a + 0.3 * torch.randn(n, d, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(z.to(device, dtype).requires_grad_() for z in (z_a, z_b))


def call(name: str, form: str, z_a, z_b):
    """Forward and backward; returns (loss, gradient of z_a)."""
    ours, plains = OBJECTIVES[name]
    z_a.grad = z_b.grad = None
    loss = ours(z_a, z_b)[0] if form == "ours" else plains[form](z_a, z_b)
    loss.backward()
    return loss.detach(), z_a.grad


def gflops_per_second() -> float:
    """The best rate of a plain float32 product here: the ceiling."""
    size = 2048 if not torch.cuda.is_available() else 8192
    x = torch.randn(size, size, device="cuda" if torch.cuda.is_available() else "cpu")
    return 2 * size**3 / min(interleaved({"product": lambda: x @ x}, seconds=1)["product"]) / 1e9


def times(quick: bool) -> list[dict]:
    ceiling = gflops_per_second()
    rows = []
    for name, shapes in SHAPES.items():
        for n, d in shapes[:2] if quick else shapes:
            z_a, z_b = inputs(n, d)
            forms = ["ours", *OBJECTIVES[name][1]]
            took = interleaved({form: lambda form=form: call(name, form, z_a, z_b) for form in forms})
            ms = {form: 1000 * sorted(t)[len(t) // 2] for form, t in took.items()}
            row = {
                "objective": name,
                "n": n,
                "d": d,
                "ms": ms,
                "ratio": {form: ratio(took[form], took["ours"]) for form in forms[1:]},
            }
            if name == "vicreg":  # two products per branch, value and gradient
                row["of_ceiling"] = 8 * n * d * min(n, d) / (min(took["ours"]) * 1e9) / ceiling
            rows.append(row)
    return rows


def memory(quick: bool) -> list[dict]:
    rows = []
    for name, shapes in MEMORY.items():
        for n, d in shapes[:1] if quick else shapes:
            forms = ["ours", *OBJECTIVES[name][1]]
            peaks = {
                form: in_fresh_process("benchmarks.objective", "--memory", name, form, str(n), str(d))["mib"]
                for form in forms
            }
            rows.append({"objective": name, "n": n, "d": d, "mib": peaks})
    return rows


def hard_cases() -> dict[str, torch.Tensor]:
    """Embeddings on which a careless form loses its digits, float64."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(256, 2048, generator=generator, dtype=torch.float64)
    heavy = normal.clone()
    heavy[:, 7] *= 1e4
    few = torch.randn(256, 128, generator=generator, dtype=torch.float64)
    # uncorrelated to the last digit: only the small rest is off the diagonal
    orthogonal, _ = torch.linalg.qr(few - few.mean(0))
    live = lambda rest: torch.cat([orthogonal * 16, rest * normal[:, 128:]], 1)
    line = torch.randn(256, 1, generator=generator, dtype=torch.float64) @ torch.randn(
        1, 2048, generator=generator, dtype=torch.float64
    )
    tall = torch.randn(1024, 256, generator=generator, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.cov(tall.T))
    whitened = (tall - tall.mean(0)) @ (vectors / values.sqrt()) @ vectors.T
    return {
        "normal": normal,
        "collapsed": 1 + 1e-4 * normal,
        "offset 1e4": normal + 1e4,
        "one column x 1e4": heavy,
        "few live columns, rest 1e-3": live(1e-3),
        "few live columns, rest 1e-5": live(1e-5),
        "rank one": line,
        "whitened + 1e-3": whitened + 1e-3 * tall.flip(0),
        "two samples": normal[:2],
        "N = D": normal[:, :256],
        "N = D / 2": normal[:, :512],
    }


def errors() -> list[dict]:
    """Relative errors of the covariance weight alone (the part that can cancel) in float32."""
    rows = []
    alone = VICReg(invariance=0, variance=0)
    for name, z in hard_cases().items():

        def plain_covariance(x):
            x = x - x.mean(0)
            return plain.off_diagonal_by_reshape(x.T @ x / (len(x) - 1)).pow(2).sum() / x.shape[1]

        z = z.float()
        truth_in, plain_in, ours_in = (
            z.to(t).clone().requires_grad_() for t in (torch.float64, torch.float32, torch.float32)
        )
        truth, of_plain, of_ours = (
            plain_covariance(truth_in),
            plain_covariance(plain_in),
            alone(ours_in, z)[0],
        )
        of_ours = of_ours - alone(z, z)[0] / 2  # z stands on branch b as a constant
        for value in (truth, of_plain, of_ours):
            value.backward()
        relative = lambda x: float((x.double() - truth_in.grad).norm() / truth_in.grad.norm())
        rows.append(
            {
                "case": name,
                "n": z.shape[0],
                "d": z.shape[1],
                "value": {
                    "plain": abs(of_plain.item() / truth.item() - 1),
                    "ours": abs(of_ours.item() / truth.item() - 1),
                },
                "gradient": {"plain": relative(plain_in.grad), "ours": relative(ours_in.grad)},
            }
        )
    return rows


def half_precision() -> list[dict]:
    """Gradient error of bfloat16 inputs against float64 of the same numbers; and float16 inputs with a large
    spread."""
    rows = []
    for n, d in ((256, 2048), (1024, 512)):
        z_a, z_b = inputs(n, d, torch.bfloat16)
        truth_a, truth_b = (z.detach().double().requires_grad_() for z in (z_a, z_b))
        plain.official(truth_a, truth_b).backward()
        error = {
            form: float(
                (call("vicreg", form, z_a, z_b)[1].double() - truth_a.grad).norm() / truth_a.grad.norm()
            )
            for form in ("ours", "official")
        }
        rows.append({"inputs": "bfloat16", "n": n, "d": d, "gradient": error})
    z_a, z_b = (6 * z.detach() for z in inputs(2048, 512, torch.float16))
    finite = {}
    for form in ("ours", "official"):
        loss, gradient = call("vicreg", form, z_a.requires_grad_(), z_b.requires_grad_())
        finite[form] = bool(loss.isfinite() and gradient.isfinite().all())
    rows.append({"inputs": "float16, std 6", "n": 2048, "d": 512, "finite": finite})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objective", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="the smallest shapes of each table")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    parser.add_argument(
        "--memory",
        nargs=4,
        metavar=("OBJECTIVE", "FORM", "N", "D"),
        help="print the peak of one call in this process",
    )
    options = parser.parse_args()
    if options.memory:
        name, form, n, d = options.memory
        call(name, form, *inputs(4, 4))  # libraries' own buffers
        z = inputs(int(n), int(d))
        print(json.dumps({"mib": peak_mib(lambda: call(name, form, *z))}))
        return
    results = {
        "time": times(options.quick),
        "memory": memory(options.quick),
        "error": errors(),
        "half": half_precision(),
    }
    print(
        "time, forward and backward, float32: ms, and how many times ours is faster; ceiling: share of the"
        " rate of a plain product\n"
    )
    print(
        table(
            [
                "objective",
                "N",
                "D",
                "ours ms",
                "official/plain ms",
                "times faster",
                "than mask form",
                "of ceiling",
            ],
            [
                [
                    r["objective"],
                    r["n"],
                    r["d"],
                    r["ms"]["ours"],
                    list(r["ms"].values())[1],
                    list(r["ratio"].values())[0],
                    r["ratio"].get("mask", "-"),
                    r.get("of_ceiling", "-"),
                ]
                for r in results["time"]
            ],
        )
    )
    print("\npeak memory over the inputs, MiB, fresh processes\n")
    print(
        table(
            ["objective", "N", "D", "ours", "official/plain", "mask form"],
            [
                [r["objective"], r["n"], r["d"], *list(r["mib"].values())[:2], r["mib"].get("mask", "-")]
                for r in results["memory"]
            ],
        )
    )
    print("\nrelative error of the covariance term in float32 against float64\n")
    print(
        table(
            ["case", "N", "D", "value plain", "value ours", "gradient plain", "gradient ours"],
            [
                [r["case"], r["n"], r["d"], *r["value"].values(), *r["gradient"].values()]
                for r in results["error"]
            ],
        )
    )
    print("\nhalf precision inputs: gradient error, or whether all is finite\n")
    print(
        table(
            ["inputs", "N", "D", "ours", "official"],
            [
                [r["inputs"], r["n"], r["d"], *r.get("gradient", r.get("finite")).values()]
                for r in results["half"]
            ],
        )
    )
    write(options.json, results)


if __name__ == "__main__":
    main()
