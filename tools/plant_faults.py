"""Does `awq2trt check` find what it must? Plants one fault after another in copies of a build, and shows what is named.

    python tools/plant_faults.py build/demo [--tokens 24] [--only NAME ...]

For a Llama-like model in the natural layout, as `make demo` quantizes it. Every copy is signed again, as if a faulty
stage had written it, so that hashes reveal nothing. It exits with 1 if a fault is missed or named wrongly. It takes
about 12 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

from awq2trt.artifact.manifest import record_file
from awq2trt.checking.chain import run_chain
from awq2trt.checking.results import FOLDED, ONNX, QUANTIZED
from awq2trt.checking.subject import find_subject
from awq2trt.checking.text import DEFAULT_TEXT
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.pack import pack_int4, unpack_int4
from awq2trt.io_contract import MODEL_FILE, weights_of
from awq2trt.models.families import RopeSpec
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import terminal_progress
from awq2trt.text.tokenizer import encode, load_tokenizer

Array = NDArray[Any]
Tensors = dict[str, Array]

WRONG_BASE = 1.3
"""Power of every frequency, which gives another base of the rotation."""


@dataclass(frozen=True)
class Fault:
    """A fault, and what `check` must say about it.

    Attributes:
        name: What it is.
        stage: The stage that must be named.
        place: The block or tensor that must be named.
        plant: Damages a build.
    """

    name: str
    stage: str
    place: str
    plant: Callable[[Path], None]


def main() -> None:
    """Plants the faults and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="a directory that `awq2trt build ... -o DIR` wrote")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--only", nargs="*", help="words of the faults' names")
    arguments = parser.parse_args()
    table = Table(title="Planted faults")
    for header in ("fault", "must be named", "named", "message", "s"):
        table.add_column(header)
    missed = 0
    for fault in demo_faults(arguments.directory):
        if arguments.only and not any(word in fault.name for word in arguments.only):
            continue
        started = time.monotonic()
        stage, place, message = named(arguments.directory, fault, arguments.tokens)
        right = (stage, place) == (fault.stage, fault.place)
        missed += not right
        seconds = time.monotonic() - started
        found = f"{'' if right else 'WRONG '}{stage}, {place}"
        print(f"{fault.name}: {found}: {message} ({seconds:.0f} s)", flush=True)
        table.add_row(fault.name, f"{fault.stage}, {fault.place}", found, message, f"{seconds:.0f}")
    table.add_row(
        "a bias dropped", "", "not planted", "the demo's model has no biases; tests/checking/test_chain.py has one", ""
    )
    Console(width=200).print(table)
    if missed:
        raise SystemExit(1)


def named(directory: Path, fault: Fault, tokens: int) -> tuple[str, str, str]:
    """The stage, place and message that `check` reports for a build with a fault; `none` if it finds nothing."""
    with tempfile.TemporaryDirectory(prefix="awq2trt-fault-") as scratch:
        copy = Path(scratch)
        for name in ("checkpoint", "onnx"):
            shutil.copytree(directory / name, copy / name)
        fault.plant(copy)
        subject = find_subject(copy)
        ids = encode(load_tokenizer(copy / "checkpoint"), DEFAULT_TEXT)[:tokens]
        failure = run_chain(subject, ids, terminal_progress()).first_failure()
    return (failure.stage, failure.place, failure.message) if failure else ("none", "none", "")


def demo_faults(directory: Path) -> Iterator[Fault]:
    """Faults in the checkpoint, then in the exported model, in blocks from the first to the last."""
    checkpoint = QuantizedCheckpoint.open(directory / "checkpoint")
    rope = checkpoint.spec.ropes[0]

    def block(layer: int) -> str:
        return f"model.layers.{layer}"

    def in_checkpoint(name: str, stage: str, layer: int, edit: Callable[[Tensors], None]) -> Fault:
        return Fault(name, stage, block(layer), lambda build: edit_checkpoint(build, edit))

    def in_weights(name: str, layer: int, tensor: str, change: Callable[[Array], Array]) -> Fault:
        full = f"{block(layer)}.{tensor}"
        return Fault(name, ONNX, block(layer), lambda build: edit_weights(build, full, change))

    def in_graph(name: str, layer: int, edit: Callable[[ir.Model], None]) -> Fault:
        return Fault(name, ONNX, block(layer), lambda build: edit_graph(build, edit))

    linear = f"{block(7)}.self_attn.k_proj"
    yield in_checkpoint("one scale doubled", QUANTIZED, 7, lambda all_: double_a_scale_(all_, linear, 5))
    gate = f"{block(23)}.mlp.gate_proj"
    yield in_checkpoint("one zero point off by one", QUANTIZED, 23, lambda all_: move_a_zero_point_(all_, gate, 7))
    down = f"{block(0)}.mlp.down_proj"
    yield in_checkpoint("two rows swapped", QUANTIZED, 0, lambda all_: swap_rows_(all_, down, 3, 4))
    query = f"{block(29)}.self_attn.q_proj"
    yield in_checkpoint("nibbles swapped", QUANTIZED, 29, lambda all_: swap_nibbles_(all_, query))
    yield Fault("rotary base wrong, config.json", FOLDED, "config.json", change_the_rotary_base)
    yield Fault("norm weight not folded", FOLDED, block(12), lambda build: unfold_a_norm(build, block(12)))
    yield in_checkpoint(
        "a NaN among the scales", QUANTIZED, 4, lambda all_: plant_a_nan_(all_, f"{block(4)}.mlp.up_proj")
    )

    yield in_weights("one scale doubled, exported", 28, "mlp.up_proj.scales", double_one_)
    yield in_weights("one code off by one, exported", 15, "self_attn.o_proj.codes", one_step_off_)
    yield Fault("rotary base wrong, exported", ONNX, "rotary.cos", lambda build: change_the_tables(build, rope))
    yield in_graph("cache index off by one", 17, lambda model: write_the_cache_late_(model, block(17)))
    yield in_graph("mask off by one: not itself", 0, lambda model: move_the_mask_(model, "Sub"))
    yield in_graph("mask off by one: the next too", 0, lambda model: move_the_mask_(model, "Add"))
    yield in_weights("a NaN in a norm, exported", 20, "input_layernorm.weight", nan_in_the_middle_)


# Editing a build.


def sign(directory: Path, *names: str) -> None:
    """Updates the manifest to match changed files, as if a faulty stage had written them."""
    manifest = directory / "manifest.json"
    value = json.loads(manifest.read_text())
    for name in names:
        value["files"][name] = record_file(directory / name).model_dump()
    manifest.write_text(json.dumps(value))


def edit_checkpoint(build: Path, edit: Callable[[Tensors], None]) -> None:
    """Changes tensors of the checkpoint."""
    path = build / "checkpoint" / "model.safetensors"
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    sign(build / "checkpoint", path.name)


def edit_graph(build: Path, edit: Callable[[ir.Model], None]) -> None:
    """Changes the exported graph, but not its weights."""
    path = build / "onnx" / "model.onnx"
    model = ir.load(path)
    edit(model)
    path.write_bytes(ir.to_proto(model).SerializeToString())
    sign(build / "onnx", path.name)


def edit_weights(build: Path, name: str, change: Callable[[Array], Array], file: str = MODEL_FILE) -> None:
    """Overwrites a tensor of an exported graph's weights in place; INT4 is passed as packed bytes."""
    tensor = ir.load(build / "onnx" / file).graph.initializers[name].const_value
    if not isinstance(tensor, ir.ExternalTensor) or tensor.offset is None:
        raise TypeError(f"{name}: expected external data")
    packed = tensor.dtype is ir.DataType.INT4
    changed = change(np.frombuffer(tensor.tobytes(), np.uint8).copy() if packed else tensor.numpy().copy())
    with (build / "onnx" / weights_of(file)).open("r+b") as stored:
        stored.seek(tensor.offset)
        stored.write(changed.tobytes())
    sign(build / "onnx", weights_of(file))


# Faults of a checkpoint in the natural layout.


def double_a_scale_(tensors: Tensors, linear: str, row: int) -> None:
    """Doubles the scale of the first group in a row."""
    tensors[f"{linear}.scales"][row, 0] *= 2


def move_a_zero_point_(tensors: Tensors, linear: str, row: int) -> None:
    """Changes the zero point of the second group in a row by one."""
    zeros = unpack_int4(tensors[f"{linear}.zeros"], tensors[f"{linear}.scales"].shape)
    zeros[row, 1] += 1 if zeros[row, 1] < 15 else -1
    tensors[f"{linear}.zeros"] = pack_int4(zeros)


def swap_rows_(tensors: Tensors, linear: str, one: int, other: int) -> None:
    """Swaps the codes of two outputs, while their scales stay."""
    rows = tensors[f"{linear}.scales"].shape[0]
    packed = tensors[f"{linear}.codes"]
    codes = unpack_int4(packed, (rows, 2 * packed.size // rows))
    codes[[one, other]] = codes[[other, one]]
    tensors[f"{linear}.codes"] = pack_int4(codes)


def swap_nibbles_(tensors: Tensors, linear: str) -> None:
    """Swaps the nibbles of every byte."""
    codes = tensors[f"{linear}.codes"]
    codes[:] = (codes >> 4) | (codes << 4)


def plant_a_nan_(tensors: Tensors, linear: str) -> None:
    """Puts a NaN into the scales of a linear."""
    tensors[f"{linear}.scales"][3, 0] = np.nan


def unfold_a_norm(build: Path, block: str) -> None:
    """Puts the original's gain in place of the folded one."""
    name = f"{block}.input_layernorm.weight"
    manifest = json.loads((build / "checkpoint" / "manifest.json").read_text())
    original = open_source(manifest["contents"]["source"]["model"]).tensor(name).astype(np.float16)
    edit_checkpoint(build, lambda tensors: tensors.update({name: original}))


def change_the_rotary_base(build: Path) -> None:
    """Changes the rotary base in config.json."""
    path = build / "checkpoint" / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 500.0
    path.write_text(json.dumps(config))
    sign(build / "checkpoint", path.name)


# Faults of an exported model.


def double_one_(scales: Array) -> Array:
    """Doubles one scale, in the middle."""
    scales.reshape(-1)[scales.size // 2] *= 2
    return scales


def one_step_off_(packed: Array) -> Array:
    """Changes the lowest bit of one code, in the middle."""
    packed[packed.size // 2] ^= 1
    return packed


def nan_in_the_middle_(value: Array) -> Array:
    """Replaces one element with a NaN."""
    value.reshape(-1)[value.size // 2] = np.nan
    return value


def change_the_tables(build: Path, rope: RopeSpec) -> None:
    """Replaces cos and sin with those of another base."""
    wrong = replace(rope, inv_freq=tuple(frequency**WRONG_BASE for frequency in rope.inv_freq))
    for index, name in enumerate(("rotary.cos", "rotary.sin")):
        edit_weights(build, name, lambda table, index=index: wrong.tables(len(table))[index].astype(table.dtype))  # type: ignore[misc]


def write_the_cache_late_(model: ir.Model, block: str) -> None:
    """Writes the keys of a block one slot too late."""
    (scatter,) = (node for node in model.graph if node.name == f"{block}.cache_key")
    _shift_(model, scatter, 2, "Add")


def move_the_mask_(model: ir.Model, op_type: str) -> None:
    """Moves the mask: with `Sub`, a token does not see itself; with `Add`, it also sees the next one."""
    (mask,) = (node for node in model.graph if node.op_type == "LessOrEqual")
    _shift_(model, mask, 1, op_type)


def _shift_(model: ir.Model, node: ir.Node, index: int, op_type: str) -> None:
    """Adds one to an input of a node, or subtracts it."""
    one = ir.node("Constant", [], {"value_int": 1})
    shifted = ir.node(op_type, [node.inputs[index], one.outputs[0]])
    new: Sequence[ir.Node] = [one, shifted]
    model.graph.insert_before(node, new)
    node.replace_input_with(index, shifted.outputs[0])


if __name__ == "__main__":
    main()
