"""How strongly should sensitivity draw codebook entries, how much damping do Gram matrices need?

One layer of a base, its inputs from the layers before it as they are: the error of each linear's
outputs, relative to the outputs, on text that was not calibrated with.

    python -m benchmarks.sketch_power --base DIR --calibration valid.txt --text test.txt --layer 8
"""

import argparse
from pathlib import Path

from torch import Tensor

from tsugiki.compress.hf_model import load_model
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.layers import LayerWalk
from tsugiki.compress_base.sensitivity import Sensitivity, indifferent, sensitivity
from tsugiki.compress_base.sketch import sketch_linear
from tsugiki.compress_base.text import sequences
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.sketched import SketchSettings
from tsugiki_kernels.codebooks import looked_up

LINEARS = ("self_attn.q_proj.weight", "mlp.gate_proj.weight", "mlp.down_proj.weight")
POWERS, DAMPINGS, GROUPS = (0.0, 1.0, 2.0, 3.0, 4.0), (0.01, 0.1), (1, 4)


def output_error(
    weight: Tensor, costs: Sensitivity, groups: int, power: float, on: Tensor
) -> float:
    """sqrt(tr(E H E^T) / tr(W H W^T)) at 4 bits, H: the Gram matrix `on`."""
    found = sketch_linear(weight, costs, SketchSettings(4, groups), power).weight
    error = looked_up(found.index, found.codebooks) - weight
    return float((((error @ on) * error).sum() / ((weight @ on) * weight).sum()).sqrt())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--layer", type=int, default=8)
    arguments = parser.parse_args()
    base = resolve_base(arguments.base, default_cache_dir())
    model, tokenizer = load_model(base), load_tokenizer(base)
    walks = [
        LayerWalk(model, sequences(path, tokenizer, count, 512))
        for path, count in ((arguments.calibration, 16), (arguments.text, 4))
    ]
    for walk in walks:
        for layer in range(arguments.layer):
            walk.advance(layer)
    fitted, held = (walk.grams(arguments.layer) for walk in walks)
    settings = [(damping, power) for damping in DAMPINGS for power in POWERS]
    names = " | ".join(f"p {power:g}, damping {damping:g}" for damping, power in settings)
    print(f"| linear, groups | k-means alone | {names} |\n|{'---|' * (2 + len(settings))}")
    for name in LINEARS:
        weight = model.base_model.layers[arguments.layer].get_parameter(name).detach()
        costs = {damping: sensitivity(fitted[name], damping) for damping in DAMPINGS}
        for groups in GROUPS:
            plain = output_error(weight, indifferent(weight.shape[1]), groups, 0.0, held[name])
            errors = [output_error(weight, costs[d], groups, p, held[name]) for d, p in settings]
            cells = " | ".join(f"{error:.4f}" for error in (plain, *errors))
            print(f"| {name}, {groups} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
