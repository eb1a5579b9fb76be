"""Lets users repeat a check by hand: writes files and commands with which polygraphy runs a model on `check`'s inputs.

In: a checked build. Out: a folder that can be read without awq2trt, and the command lines:

- `data_loader.py` with `inputs.npz`: the calls, including the caches before each, as PyTorch computes them;
- `expected.json`: the quantized model's logits after each call, as polygraphy stores outputs;
- `network.py`: the model as TensorRT-RTX parses it, with our plugin library registered. polygraphy's own `--plugins`
  only works with libraries that register themselves, but ours exports its creators (`getCreators`), for TensorRT and
  TensorRT-RTX alike, and is loaded by the plugin registry;
- `on_gpu.py`: does what polygraphy does with a model in ONNX Runtime, on CUDA and with our operators, which its command
  line cannot register. It also works on the CPU.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from awq2trt.artifact.arrays import write_arrays
from awq2trt.checking.beside import begun
from awq2trt.checking.golden import tables_of_text
from awq2trt.checking.results import ENGINE, QUANTIZED
from awq2trt.checking.runners import calls_of, first_call
from awq2trt.checking.subject import Subject
from awq2trt.checking.tolerance import drift_limit
from awq2trt.graph.read import DecoderSizes, open_decoder
from awq2trt.io_contract import CACHE_POSITION, ENGINE_FILE, INPUT_IDS, LOGITS, MODEL_FILE, cache_names
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import Ends, KeyValueCache
from awq2trt.models.deepstack import Deepstack
from awq2trt.runtime.embedding import parted
from awq2trt.runtime.trt.engine import POLYGRAPHY_SWITCH
from awq2trt.scheme import BFLOAT16
from awq2trt.target import Flavour

LOADER_FILE: Final = "data_loader.py"
INPUTS_FILE: Final = "inputs.npz"
EXPECTED_FILE: Final = "expected.json"
NETWORK_FILE: Final = "network.py"
ON_GPU_FILE: Final = "on_gpu.py"
README_FILE: Final = "README.md"


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        text: The command, for a shell.
        needs: What it needs in addition to polygraphy.
    """

    text: str
    needs: str


def write_folder(subject: Subject, tokens: Sequence[int], folder: Path) -> tuple[Command, ...]:
    """Writes the files, and returns the commands that use them.

    Args:
        subject: The subject of the check, with an exported model.
        tokens: The text that was checked.
        folder: Where the files go; created if necessary.
    """
    if subject.onnx is None:
        return ()
    _, sizes = open_decoder(subject.onnx)
    folder.mkdir(parents=True, exist_ok=True)
    rows, caches, logits = _run(subject, tokens)
    channels = sizes.new_channels
    new: dict[str, NDArray[Any]] = parted(rows, channels) if channels else {INPUT_IDS: np.asarray(tokens, np.int64)}
    inputs = {**new, **caches}
    inputs |= {name: value.astype(_NUMPY[subject.dtype]) for name, value in inputs.items() if name != INPUT_IDS}
    inputs |= tables_of_text(subject.checkpoint, tokens, sizes.table_shapes, _NUMPY[subject.dtype].__name__)
    write_arrays(folder / INPUTS_FILE, inputs)
    first = first_call(tokens)
    loader = _LOADER.format(first=first, capacity=sizes.capacity, inputs=INPUTS_FILE, new=[*new], length=len(tokens))
    (folder / LOADER_FILE).write_text(loader, encoding="utf-8")
    _write_expected(folder / EXPECTED_FILE, logits, tokens)
    network = _NETWORK.format(model=str((subject.onnx / MODEL_FILE).resolve()))
    (folder / NETWORK_FILE).write_text(network, encoding="utf-8")
    if subject.for_cuda is not None:
        on_gpu = _ON_GPU.format(
            model=str((subject.for_cuda / MODEL_FILE).resolve()),
            loader=LOADER_FILE,
            expected=EXPECTED_FILE,
            threshold=_snr_threshold(subject, sizes),
        )
        (folder / ON_GPU_FILE).write_text(on_gpu, encoding="utf-8")
    commands = _commands(subject, subject.onnx, sizes, first, folder)
    listed = "\n\n".join(f"    {command.text}\n\nneeds {command.needs}." for command in commands)
    (folder / README_FILE).write_text(_README.format(commands=listed), encoding="utf-8")
    return commands


def _commands(subject: Subject, onnx: Path, sizes: DecoderSizes, first: int, folder: Path) -> tuple[Command, ...]:
    compare = (
        f"--data-loader-script {_quoted(folder / LOADER_FILE)} --load-outputs {_quoted(folder / EXPECTED_FILE)} "
        f"--compare snr --snr-threshold {_snr_threshold(subject, sizes)} --validate"
    )
    network = f"{_quoted(folder / NETWORK_FILE)} --model-type trt-network-script"
    rows = {name: f",{width}" for name, width in sizes.new_channels.items()} or {INPUT_IDS: ""}
    shapes = " ".join(
        f"--trt-{bound}-shapes {' '.join(f'{name}:[1,{length}{row}]' for name, row in rows.items())}"
        for bound, length in (("min", 1), ("opt", first), ("max", first))
    )
    rtx = f"{POLYGRAPHY_SWITCH}=1 "
    convert = Command(
        f"{rtx}polygraphy convert {network} --convert-to trt {shapes} {_IN_PLACE} -o {_quoted(folder / ENGINE_FILE)}",
        "TensorRT-RTX, but no GPU",
    )
    if subject.dtype == BFLOAT16:
        return (convert,)  # ONNX Runtime has no kernels for bf16, and polygraphy no arrays to feed an engine with
    card = "TensorRT-RTX and a GeForce RTX card"
    commands = [
        Command(f"polygraphy run {_quoted(onnx / MODEL_FILE)} --onnxrt {compare}", "ONNX Runtime"),
        convert,
        Command(f"{rtx}polygraphy run {network} --trt {shapes} {_IN_PLACE} {compare}", card),
    ]
    if subject.for_cuda is not None:
        commands.insert(
            1, Command(f"python {_quoted(folder / ON_GPU_FILE)}", "ONNX Runtime with CUDA, an NVIDIA GPU, and awq2trt")
        )
    # The inputs have caches of the activations' type, which an engine with a cache of codes does not accept.
    takes_caches = ENGINE not in subject.coded
    if subject.engine is not None and subject.engine.flavour is Flavour.TENSORRT_RTX and takes_caches:
        built = f"{_quoted(subject.engine.path)} --model-type engine"
        commands.append(Command(f"{rtx}polygraphy run {built} --trt {compare}", f"{subject.engine.needs}"))
    return tuple(commands)


def _snr_threshold(subject: Subject, sizes: DecoderSizes) -> str:
    """The limit in decibels: a relative error of r is a signal-to-noise ratio of 20 log10(1/r)."""
    return f"{-20 * math.log10(drift_limit(subject.dtype, sizes.num_layers + 1)):.2f}"


def _run(
    subject: Subject, tokens: Sequence[int]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Runs the quantized model in PyTorch: what it reads [S, W], final caches [1, H_kv, S, D], logits [S, V]."""
    source = subject.checkpoint
    caches: dict[str, NDArray[np.float32]] = {}
    names = cache_names("past", source.spec.num_layers)
    with torch.inference_mode():
        ends = Ends(source)
        hidden, runner = begun(source, ends, tokens)
        rows = hidden[0]
        if source.spec.deepstack:
            nothing = torch.zeros(len(rows), source.spec.deepstack * source.spec.hidden_size)
            added = runner.media.features[0] if isinstance(runner.media, Deepstack) else nothing
            rows = torch.cat((rows, added), dim=-1)
        for layer in range(source.spec.num_layers):
            cache = KeyValueCache.empty(source.spec, 1, len(tokens))
            hidden = runner.run(load_block(source, layer), hidden, layer=layer, cache=cache)
            caches[names[2 * layer]], caches[names[2 * layer + 1]] = cache.keys.numpy(), cache.values.numpy()
        logits: NDArray[np.float32] = torch.cat(list(ends.logits_in_pieces(hidden[0]))).numpy()
    return rows.numpy(), caches, logits


def _write_expected(path: Path, logits: NDArray[np.float32], tokens: Sequence[int]) -> None:
    """Writes the logits after every call, only of the last position, as an exported model gives them."""
    results = RunResults()
    iterations = []
    for call in calls_of(tokens):
        last = int(call[CACHE_POSITION][0]) + call[INPUT_IDS].shape[1] - 1
        iterations.append(IterationResult({LOGITS: logits[None, last : last + 1]}, runner_name=QUANTIZED))
    results.append((QUANTIZED, iterations))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results.save(str(path))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


_IN_PLACE: Final = "--preview-features aliased_plugin_io_10_03"
"""The flag that lets a plugin write its cache in place."""

_NUMPY: Final = {"float16": np.float16, "float32": np.float32, BFLOAT16: np.float32}

_LOADER: Final = textwrap.dedent('''\
    """Feeds polygraphy the calls of `awq2trt check`: first most of the text at once, then one token at a time."""

    from pathlib import Path

    import numpy as np

    FIRST, CAPACITY = {first}, {capacity}


    def load_data():
        """Yields the inputs of every call; caches hold what came before it, followed by zeros."""
        with np.load(Path(__file__).with_name("{inputs}")) as stored:
            arrays = dict(stored)
        new = {{name: arrays.pop(name) for name in {new}}}
        for start in (0, *range(FIRST, {length})):
            end = FIRST if start == 0 else start + 1
            feed = {{name: value[None, start:end] for name, value in new.items()}}
            feed["cache_position"] = np.array([start], np.int64)
            for name, value in arrays.items():
                if not name.startswith("past_"):  # a table, which is the same in every call
                    feed[name] = value
                    continue
                _, heads, _, size = value.shape
                feed[name] = np.zeros((1, heads, CAPACITY, size), value.dtype)
                feed[name][:, :, :start] = value[:, :, :start]
            yield feed
''')

_NETWORK: Final = textwrap.dedent('''\
    """The model as TensorRT-RTX parses it: fused, with our plugins, or without plugins its function bodies."""

    import tempfile
    from pathlib import Path

    import tensorrt_rtx as trt

    from awq2trt.engine.builder import prepare_model
    from awq2trt.engine.session import NETWORK_FLAGS, allow_unfused_attention
    from awq2trt.errors import ToolError
    from awq2trt.machine.plugin_library import find_plugin_library

    MODEL = {model!r}
    LOGGER = trt.Logger(trt.Logger.WARNING)
    WORK = tempfile.TemporaryDirectory()  # holds the fused graph's weights until the engine is built


    def load_network():
        """Returns builder, network and parser, as polygraphy expects."""
        try:
            library = find_plugin_library()
        except ToolError:
            library = None
        builder = trt.Builder(LOGGER)
        network = builder.create_network(NETWORK_FLAGS)
        parser = trt.OnnxParser(network, LOGGER)
        model = prepare_model(trt, Path(MODEL), library, Path(WORK.name))
        if not parser.parse(model.serialized, str(model.path)):
            raise RuntimeError(parser.get_error(0).desc())
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            tensor.shape = (1, *tensor.shape[1:])
        allow_unfused_attention(trt, network)
        return builder, network, parser
''')

_ON_GPU: Final = textwrap.dedent('''\
    """What `polygraphy run --onnxrt` does, on a GPU and with our operators: python on_gpu.py [PROVIDER]."""

    import sys
    from pathlib import Path

    import onnxruntime
    from polygraphy import mod
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.comparator import Comparator, RunResults, SnrCompareFunc

    from awq2trt.errors import ToolError
    from awq2trt.machine.gpu import PROVIDER, open_cuda
    from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_

    MODEL = {model!r}
    FOLDER = Path(__file__).parent


    def open_session():
        """Opens the model on the chosen provider, by default on CUDA."""
        provider = sys.argv[1] if len(sys.argv) > 1 else PROVIDER
        options = onnxruntime.SessionOptions()
        if provider == PROVIDER:
            open_cuda("cuda")  # loads CUDA's libraries, or says what is missing
        try:
            register_custom_ops_(options, find_plugin_library().path)
        except ToolError as error:
            print(f"without our operators: {{error}}", file=sys.stderr)
        session = onnxruntime.InferenceSession(MODEL, options, providers=[provider])
        if provider not in session.get_providers():
            raise SystemExit(f"{{provider}} does not start here")
        return session


    load_data = mod.import_from_script(str(FOLDER / "{loader}"), name="load_data")
    expected = RunResults.load(str(FOLDER / "{expected}"))
    results = Comparator.run([OnnxrtRunner(open_session)], data_loader=load_data())
    results.extend(expected)
    passed = Comparator.validate(results, check_inf=True, check_nan=True)
    compared = Comparator.compare_accuracy(results, compare_func=SnrCompareFunc(snr_threshold={{"": {threshold}}}))
    raise SystemExit(0 if passed and compared else 1)
''')

_README: Final = textwrap.dedent("""\
    # This check by hand

    polygraphy (`pip install polygraphy`) runs the model on the inputs in this folder, and compares its outputs with
    those of the quantized model in PyTorch. Each command exits with 0 if they agree.

    {commands}
    """)
