"""Times explicit kernel configurations on this machine's GPU, to find the constants in choose_config.cpp.

python tools/tune_kernels.py decode|tile|warpgroup [--tokens 1,4] [--shapes 4096x4096,4096x22016]

Prints a line per shape, number of tokens and configuration: microseconds, share of the floor, speed. The library's own
choice comes first, marked with a star. AWQ2TRT_PLUGIN_PATH names the library. It needs a GPU and PyTorch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch

from awq2trt.errors import ToolError
from awq2trt.machine import bench
from awq2trt.machine.kernels import TILE_NAMES, WARPGROUP_TILE_NAMES, KernelConfig, Kernels
from awq2trt.machine.plugin_library import find_plugin_library

MIN_SPLIT_K = 512


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel", choices=("decode", "tile", "warpgroup"))
    parser.add_argument("--tokens", default="1,4,8")
    parser.add_argument("--shapes", default="4096x4096,4096x12288,4096x22016,11008x4096,4096x32000,8192x28672")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--chosen-only", action="store_true")
    arguments = parser.parse_args()

    kernels = Kernels.load(find_plugin_library())
    ceilings = bench.measure_ceilings(torch, kernels)
    print(f"copy {ceilings.copy_bytes_per_us / 1e6:.2f} TB/s, mma.sync {ceilings.mma_flops_per_us / 1e6:.0f} TFLOP/s")
    for shape in (bench.LayerShape(*map(int, text.split("x"))) for text in arguments.shapes.split(",")):
        kind = bench.WeightKind(group_size=arguments.group_size, zero_points=not arguments.symmetric)
        layer = bench.RotatedLayer.random(torch, shape, kind, arguments.dtype)
        for m in map(int, arguments.tokens.split(",")):
            problem = layer.problem(m)
            chosen = kernels.choose_config(problem)
            candidates = [] if arguments.chosen_only else list(_candidates(arguments.kernel, shape, m))
            for config in [chosen, *candidates]:
                try:
                    us = layer.time_us(kernels, problem, config)
                except ToolError as error:  # an impossible configuration still gets a line in the table
                    print(f"{shape!s:>12} {m:>5} {config!s:<20} {error}")
                    continue
                share = bench.floor_us(layer.bytes(m), layer.flops(m), ceilings) / us
                tflops = layer.flops(m) / us / 1e6
                mark = " *" if config is chosen else ""
                print(f"{shape!s:>12} {m:>5} {config!s:<20} {us:>8.2f} us {share:>6.3f} {tflops:>6.1f} TFLOP/s{mark}")
        del layer
        torch.cuda.empty_cache()


def _candidates(kernel: str, shape: bench.LayerShape, tokens: int) -> Iterator[KernelConfig]:
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    if kernel == "decode":
        yield KernelConfig(kernel=3, rows_per_block=16, warps=8, splits=1, overlap=True)
        for blocks_per_multiprocessor in (1, 2):
            for warps in (8, 16):
                rows = math.ceil(shape.n / multiprocessors / blocks_per_multiprocessor / 16) * 16
                for overlap in (False, True):
                    yield KernelConfig(kernel=0, rows_per_block=rows, warps=warps, splits=1, overlap=overlap)
        return
    if kernel == "warpgroup":
        for tile in range(len(WARPGROUP_TILE_NAMES)):
            yield KernelConfig(kernel=4, warpgroup_tile=tile, splits=1, overlap=True)
        return
    for tile in range(len(TILE_NAMES)):
        for splits in (1, 2, 4):
            k_per_split = math.ceil(shape.k / splits / 128) * 128
            if splits > 1 and (tokens > 128 or k_per_split < MIN_SPLIT_K):
                continue
            yield KernelConfig(
                kernel=1,
                tile=tile,
                splits=math.ceil(shape.k / k_per_split),
                overlap=True,
                k_per_split=k_per_split,
                workspace_bytes=4 * splits * tokens * shape.n if splits > 1 else 0,
            )


if __name__ == "__main__":
    main()
