"""A loss on the attention scores for q and k, instead of one on their own outputs: what it brings. No effort has it.

    python tools/study_scores.py [--bits 3] [--rows turn|alone] [--descent] [--draw 0] [--model MODEL]

Prints a perplexity as the study measures it: WikiText-2 test, 8 windows of 1,024 tokens; `awq`, groups of 128 with zero
points, calibrated on a draw of 32 windows of 512 tokens of WikiText-2 validation. Then q and k are rounded again on the
grids that were found. Takes 4 minutes of one core, with --descent 7.

The score of two positions is q^T R k, R the rotation between them. With C = E[R k k^T R^T] over keys and distances, an
error dW of a head's rows of q moves scores by tr(C dW G dW^T) in the mean of squares, G = E[x x^T]. So the rows of a
head can make up for one another, as columns do in GPTQ (`awq2trt.quantize.gptq`) through G: `--rows turn` takes one row
of every head after another, and spreads its error over the rows to come by C's inverse. The same for k, with E[q q^T].
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from study import MODEL, Texts
from study_tables import options
from study_walk import Calibration
from torch import Tensor

from awq2trt.decoder import BlockRunner, Ends, Rotary, load_block
from awq2trt.evaluate import perplexity
from awq2trt.families import DecoderSpec
from awq2trt.progress import SilentProgress
from awq2trt.quantize.block import collect_statistics, dequantized, method_of, quantize_block, run_block
from awq2trt.quantize.descent import descend
from awq2trt.quantize.gptq import DAMPING
from awq2trt.quantize.rounding import GroupGrid, Rounded, round_to_grid
from awq2trt.scheme import QuantizedLinear, QuantScheme
from awq2trt.source import open_source

DISTANCE_STEP = 4
"""Between the distances of two positions that rotations are averaged over."""


def main() -> None:
    """Walks through the model once and prints the perplexity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--rows", choices=("turn", "alone"), default="turn", help="whether rows make up for others")
    parser.add_argument("--descent", action="store_true", help="codes of a row descend once")
    parser.add_argument("--draw", type=int, default=0, help="of calibration windows: 0, 1 or 2")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--output", type=Path, default=Path("build/study-scores"), help="gets the tokenizer")
    arguments = parser.parse_args()
    source, data = open_source(arguments.model), Path(os.environ.get("AWQ2TRT_DATA", "../shared/data"))
    spec = source.spec
    if spec.block.q_norm is not None or any(rope.rotary_dim != spec.head_dim for rope in spec.ropes) or not spec.ropes:
        raise SystemExit(f"{arguments.model}: expected a model that rotates all of q and k, and norms neither")
    arguments.output.mkdir(parents=True, exist_ok=True)
    texts, wanted = Texts(source, data, arguments.output), Calibration(draw=arguments.draw)
    method = method_of(options("awq", arguments.bits))
    tests, ends = texts.test("wikitext2", windows=8, seqlen=1024), Ends(source)
    with torch.inference_mode():
        hidden, streams = ends.embed(texts.calibration(wanted)), ends.embed(tests)
        runner = BlockRunner.for_positions(spec, max(wanted.seqlen, tests.shape[1]))
        turns = rotations(Rotary(spec.ropes[0], wanted.seqlen), spec.head_dim, wanted.seqlen)
        for layer in range(spec.num_layers):
            weights = load_block(source, layer)
            hidden, statistics = collect_statistics(runner, layer, weights, hidden)
            block = quantize_block(spec, weights, statistics, method, where=spec.prefix(layer))
            scales = block.search[f"{spec.block.q_proj}.scales"]
            gram = statistics[spec.block.q_proj].gram() / torch.outer(scales, scales)
            folded = {name: weights[f"{name}.weight"] * scales for name in (spec.block.q_proj, spec.block.k_proj)}
            moments = score_moments(spec, folded, gram, turns) if arguments.rows == "turn" else {}
            quantized = dequantized(block)
            for name, weight in folded.items():
                rounded = round_again(weight, block.linears[name], gram, moments.get(name), descent=arguments.descent)
                quantized[f"{name}.weight"] = rounded.dequantize(method.scheme)
            streams = run_block(runner, layer, quantized, streams)
        finished = iter(streams)
        result = perplexity(tests, lambda _: ends.logits_in_pieces(next(finished)), SilentProgress(), "perplexity")
    rows = f"rows of q and k {arguments.rows}" + (", codes descend once" if arguments.descent else "")
    print(f"INT{arguments.bits} g128, {rows}, draw {arguments.draw}: {result.value:.2f}")


def rotations(rotary: Rotary, head_dim: int, positions: int) -> Tensor:
    """The matrices R(d) that rotate by d = 0, 4, 8, ... positions, each times the root of how often d occurs.

    Returns:
        fp32 [distances, head_dim, head_dim]: sums of R C R^T are means over all pairs of positions.
    """
    distances = range(0, positions, DISTANCE_STEP)
    unit = torch.eye(head_dim).view(head_dim, 1, 1, head_dim)
    turned = torch.stack([rotary.rotate(unit, distance).view(head_dim, head_dim).T for distance in distances])
    often = torch.tensor([float(positions - distance) for distance in distances])
    return turned * (often / often.sum()).sqrt().view(-1, 1, 1)


def score_moments(spec: DecoderSpec, folded: dict[str, Tensor], gram: Tensor, turns: Tensor) -> dict[str, Tensor]:
    """What an error of a head's rows is weighed by, fp32 [heads, head_dim, head_dim], for q and for k.

    Args:
        spec: The model.
        folded: Weights of q and k, fp32 [N, K].
        gram: E[x x^T] of their input, [K, K].
        turns: As `rotations` returns.
    """
    shared = spec.num_heads // spec.num_kv_heads
    queries, keys = (
        weight.view(-1, spec.head_dim, weight.shape[1]) @ gram @ weight.view(-1, spec.head_dim, weight.shape[1]).mT
        for weight in (folded[spec.block.q_proj], folded[spec.block.k_proj])
    )
    of_keys = torch.einsum("dpi,hpq,dqj->hij", turns, keys, turns)  # R^T C R: a key lies before its query
    of_queries = torch.einsum("dip,hpq,djq->hij", turns, queries, turns)
    return {
        spec.block.q_proj: of_keys.repeat_interleave(shared, dim=0),
        spec.block.k_proj: of_queries.unflatten(0, (-1, shared)).sum(dim=1),
    }


def round_again(
    weight: Tensor, linear: QuantizedLinear, gram: Tensor, moments: Tensor | None, *, descent: bool
) -> Rounded:
    """Codes of q or k on the grid that was found.

    Args:
        weight: fp32 [N, K].
        linear: With the grid.
        gram: E[x x^T] of its input, [K, K].
        moments: As `score_moments` returns, for rows in turn; None for every row by itself.
        descent: Let a row's codes descend once.
    """
    assert linear.zeros is not None
    grid = GroupGrid(
        torch.as_tensor(linear.scales).float().unsqueeze(-1), torch.as_tensor(linear.zeros).float().unsqueeze(-1)
    )
    if moments is None:
        return _round(weight, grid, gram, linear.scheme, descent=descent)
    heads, rows, _ = moments.shape
    damped = moments + DAMPING * moments.diagonal(dim1=1, dim2=2).mean(dim=-1).view(-1, 1, 1) * torch.eye(rows)
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    remaining, codes = weight.view(heads, rows, -1).clone(), torch.empty_like(weight).view(heads, rows, -1)
    scales, zeros = (value.view(heads, rows, -1, 1) for value in (grid.scales, grid.zeros))
    for row in range(rows):
        target = remaining[:, row].contiguous()
        rounded = _round(target, GroupGrid(scales[:, row], zeros[:, row]), gram, linear.scheme, descent=descent)
        codes[:, row] = rounded.codes
        error = (target - rounded.dequantize(linear.scheme)) / spread[:, row, row].view(-1, 1)
        remaining[:, row + 1 :] -= spread[:, row, row + 1 :].unsqueeze(-1) * error.unsqueeze(1)
    return Rounded(codes.view_as(weight), grid)


def _round(weight: Tensor, grid: GroupGrid, gram: Tensor, scheme: QuantScheme, *, descent: bool) -> Rounded:
    rounded = round_to_grid(weight, grid, scheme)
    return descend(weight, rounded, gram, scheme, passes=1) if descent else rounded


if __name__ == "__main__":
    main()
