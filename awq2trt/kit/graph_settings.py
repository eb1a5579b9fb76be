"""What a kit's script must know of the graphs that it makes engines of: their names, and what it calls trtexec with.

In: the graphs, as a kit has them, and their profiles. Out: lines of `kit.conf`.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from awq2trt.artifact.records import GraphRecord, Profiles
from awq2trt.engine.profiles import contract_shapes
from awq2trt.graph.basic_ops import ONE
from awq2trt.graph.read import operators_of
from awq2trt.io_contract import DECODER, DEEPSTACK_EMBEDS, NEW_TOKENS, IoContract


def graph_settings(
    graphs: Mapping[str, GraphRecord], models: Mapping[str, ir.Model], profiles: Profiles
) -> dict[str, str]:
    """What the script reads, by name.

    Args:
        graphs: By name.
        models: The same, by file.
        profiles: Optimization profiles of their engines.
    """
    stems = {name: graph.model.removesuffix(".onnx") for name, graph in graphs.items()}
    new = [tensor for tensor in graphs[DECODER].io.inputs if tensor.name in (*NEW_TOKENS, DEEPSTACK_EMBEDS)]
    settings = {
        # The decoder's comes last: where it is, all are.
        "graphs": " ".join([*(stem for name, stem in stems.items() if name != DECODER), stems[DECODER]]),
        "graphs_with_operators": " ".join(
            stem for name, stem in stems.items() if operators_of(models[graphs[name].model])
        ),
        "new_tokens": " ".join(tensor.name for tensor in new),
        # With the number of tokens to fill in.
        "new_tokens_shapes": ",".join(
            f"{tensor.name}:{'x'.join(['1', 'TOKENS', *map(str, tensor.shape[2:])])}" for tensor in new
        ),
    }
    return settings | {
        f"profiles_{stem}": " ".join(_profile_options(graphs[name].io, profiles, name)) for name, stem in stems.items()
    }


def is_free(axis: int | str) -> bool:
    """Whether an axis has no fixed length on a Jetson."""
    return isinstance(axis, str) and axis not in ONE


def _profile_options(contract: IoContract, profiles: Profiles, name: str) -> list[str]:
    """trtexec's options for a graph's profiles; none for one whose inputs have fixed shapes."""
    free = [tensor.name for tensor in contract.inputs if any(is_free(axis) for axis in tensor.shape)]
    options = []
    for index, profile in enumerate(profiles[name] if free else ()):
        ranges = contract_shapes(profile, contract)
        options.append(f"--profile={index}")
        for bound, shapes in zip(
            ("min", "opt", "max"), zip(*(ranges[each] for each in free), strict=True), strict=True
        ):
            named = (f"{each}:{'x'.join(map(str, shape))}" for each, shape in zip(free, shapes, strict=True))
            options.append(f"--{bound}Shapes={','.join(named)}")
    return options
