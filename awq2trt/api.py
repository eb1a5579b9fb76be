"""The functions that the command line calls, and that `import awq2trt` gives to Python.

    import awq2trt

    options = awq2trt.QuantizeOptions(bits=4, group_size=128)
    checkpoint = awq2trt.quantize("HuggingFaceTB/SmolLM2-135M-Instruct", "out/checkpoint", options)
    onnx = awq2trt.export(checkpoint.directory, "out/onnx")
    for piece in awq2trt.load(onnx.directory).generate("What is the capital of France?"):
        print(piece, end="", flush=True)

In: names of models, directories, options. Out: artifacts, answers, findings. Every function raises a subclass of
`awq2trt.Awq2trtError` for whatever a user can put right, and says how; an option that makes no sense by itself is a
ValueError where the options are made (pydantic's ValidationError). Nothing is printed: progress goes to what is passed
for it, e.g. `awq2trt.terminal_progress()`.

Each function imports the work that it starts, so that PyTorch is loaded only where it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from awq2trt.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from awq2trt.artifact.manifest import Artifact
    from awq2trt.checking.outcome import CheckOutcome, GoldenOutcome
    from awq2trt.evaluation.results import CaptionedImages, EvalResult, TaskExamples, TextWindows
    from awq2trt.recipe import ExportOptions, QuantizeOptions, Recipe
    from awq2trt.runtime import Model
    from awq2trt.runtime.native import NativeModel

StrPath = str | PathLike[str]


def quantize(
    model: StrPath,
    output: StrPath,
    options: QuantizeOptions | None = None,
    *,
    device: str = "cpu",
    max_memory: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Quantizes a model: `awq2trt quantize`.

        options = awq2trt.QuantizeOptions(method="gptq")
        checkpoint = awq2trt.quantize("smollm2-135m-instruct", "out/checkpoint", options)
        print(checkpoint.manifest.contents.quantization)

    Args:
        model: A directory, a .gguf file, a hub id, or the name of a model that an installed package provides.
        output: The checkpoint's directory, new or empty.
        options: Method, bits, groups, calibration; None for the defaults: AWQ, INT4, groups of 128 with zero points.
        device: Where PyTorch computes: `cpu`, `cuda`, or `cuda:1` for the second GPU.
        max_memory: Memory limit of the process, like `8G`, on the device where it computes; the plan is refused if it
            cannot be kept. None sets no limit.
        resume: Continue an interrupted run of the same model and options; the result is the same to the byte.
        overwrite: Replace whatever is in `output`.
        progress: Receives the progress of the work; None for silence.

    Returns:
        The checkpoint, in AutoAWQ's layout or compressed-tensors' where one of them holds the model.

    Raises:
        UsageError: The options contradict each other, or the output directory is the model's own.
        UnsupportedError: The model's architecture is not known.
        CheckpointError: The model's files are missing, damaged or not finite.
        CalibrationError: The calibration text is missing or too short, or the model cannot run on it.
        ArtifactError: The output directory is in use or holds something else.
    """
    from awq2trt.recipe import QuantizeOptions
    from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

    request = QuantizeRequest(
        str(model), Path(output), options or QuantizeOptions(), resume, overwrite, device, max_memory
    )
    return quantize_stage(request, _or_silent(progress))


def quantize_on_ranks(
    model: StrPath,
    output: StrPath,
    options: QuantizeOptions | None = None,
    *,
    device: str = "cpu",
    max_memory: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Artifact | None:
    """Quantizes like `quantize`, together with all processes that torchrun started; each of them calls this.

        made = awq2trt.quantize_on_ranks("smollm2-135m-instruct", "out/shared", awq2trt.QuantizeOptions(method="rtn"))

    Args:
        model: The same files on every host.
        output: Only the first rank reads and writes it.
        options: The same on every rank.
        device: `cpu`, or `cuda` for the GPU of each rank's number on its host.
        max_memory: Memory limit of the process, like `8G`, on the device where it computes; the plan is refused if it
            cannot be kept. None sets no limit.
        resume: Continue an interrupted run, to the same bytes. Where ranks share every block, they must
            be as many as before.
        overwrite: Replace whatever is in `output`.
        progress: Receives the progress of the work on the first rank; None for silence.

    Returns:
        The checkpoint on the first rank; None on all others.

    Raises:
        Awq2trtError: Whatever `quantize` raises, on the rank that fails first.
        UsageError: The environment contradicts itself, or ranks were given different models or options.
        RankLostError: Another rank has ended or does not answer.
        PeerFailedError: Another rank failed first and has reported why.
    """
    from awq2trt.recipe import QuantizeOptions
    from awq2trt.stages.quantize import QuantizeRequest, quantize_on_ranks_stage

    request = QuantizeRequest(
        str(model), Path(output), options or QuantizeOptions(), resume, overwrite, device, max_memory
    )
    return quantize_on_ranks_stage(request, _or_silent(progress))


def export(
    checkpoint: StrPath,
    output: StrPath,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Exports a 4-bit checkpoint to an ONNX model: `awq2trt export`.

        onnx = awq2trt.export("out/checkpoint", "out/onnx", awq2trt.ExportOptions(max_seq_len=2048))

    Args:
        checkpoint: Directory of a quantized checkpoint, ours or another tool's (AutoAWQ, GPTQ, compressed-tensors).
        output: The ONNX model's directory, new or empty.
        options: Cache capacity, type of activations; None for the defaults.
        overwrite: Replace whatever is in `output`.
        progress: Receives the progress of the work; None for silence.

    Returns:
        The model, with its tokenizer and golden outputs; `load` runs it.

    Raises:
        UsageError: The capacity exceeds the positions that the model was made for, or the output directory is the
            checkpoint's own.
        UnsupportedError: The checkpoint's architecture or format is not known.
        CheckpointError: The checkpoint is damaged.
        ArtifactError: The output directory is in use or holds something else.
    """
    from awq2trt.recipe import ExportOptions
    from awq2trt.stages.export import ExportRequest, export_stage

    request = ExportRequest(Path(checkpoint), Path(output), options or ExportOptions(), overwrite=overwrite)
    return export_stage(request, _or_silent(progress))


def build(
    model: StrPath,
    output: StrPath,
    *,
    target: str | None = None,
    recipe: Recipe | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    force: bool = False,
    tar: bool = False,
    ssh: str | None = None,
    on_artifact: Callable[[Artifact], None] | None = None,
    progress: Progress | None = None,
) -> list[Artifact]:
    """Takes a model through all stages: `awq2trt build`. Stages whose results are current are not run again.

        checkpoint, onnx, engine = awq2trt.build("smollm2-135m-instruct", "out", target="rtx4090")

    Args:
        model: A directory, a .gguf file, a hub id, or the name of a model that an installed package provides.
        output: Directory in which every stage gets a subdirectory.
        target: A name that `awq2trt targets` lists; None takes the recipe's.
        recipe: Options of all stages; None for the defaults.
        device: Where PyTorch quantizes: `cpu`, `cuda`, or `cuda:1` for the second GPU.
        overwrite: Replace whatever is in those directories.
        force: Orin: make the kit even if the model is predicted not to fit.
        tar: Orin: also pack the kit into one file.
        ssh: Orin: USER@HOST of the Jetson that will finish the kit.
        on_artifact: Called with each artifact as soon as it is finished.
        progress: Receives the progress of the work; None for silence.

    Returns:
        Checkpoint, ONNX model, and engine or kit.

    Raises:
        UsageError: No target is given, or options contradict each other.
        UnsupportedError: The target cannot be built for here, or the model does not fit it.
        ToolError: TensorRT or the plugin library is missing.
        BuildError: TensorRT refuses the model, or a kit's script fails.
        Awq2trtError: Whatever `quantize` and `export` raise.
    """
    from awq2trt.recipe import Recipe, apply_flags
    from awq2trt.stages.build import BuildRequest, build_stage

    options = apply_flags(recipe or Recipe(), {"build": {"target": target}})
    request = BuildRequest(
        str(model), Path(output), options, overwrite=overwrite, force=force, tar=tar, ssh=ssh, device=device
    )
    made = []
    for artifact in build_stage(request, _or_silent(progress)):
        made.append(artifact)
        if on_artifact is not None:
            on_artifact(artifact)
    return made


def load(
    directory: StrPath,
    *,
    backend: str = "ort",
    device: str | None = None,
    golden: bool = True,
    trust_library: bool = False,
    progress: Progress | None = None,
) -> Model | NativeModel:
    """Loads an exported model, so that it can be run: `awq2trt run`.

        model = awq2trt.load("out/onnx")
        print(model.generate_text("The sea is", raw=True, max_new_tokens=20))
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
        for piece in model.generate(messages, sampling=awq2trt.Sampling(temperature=0.7, seed=1)):
            print(piece, end="", flush=True)

    Args:
        directory: An ONNX model, a model built for `cpu` or `cuda`, or an engine's directory, which contains one.
        backend: What runs it. `ort`: ONNX Runtime's Python package. `native`: the C++ library, which runs models built
            for `cpu` or `cuda`, engines and finished kits. `auto`: the C++ library for models built for `cpu` or
            `cuda`, if it is installed, and ONNX Runtime otherwise.
        device: Where: `cpu`, `cuda`, or `cuda:1` for the second GPU; None for the fastest available.
        golden: Check the golden outputs on the first run on a GPU.
        trust_library: Load the operator library in the directory, which is code that came with the model.
        progress: Receives a line that says what runs the model; None for silence.

    Returns:
        The model; its methods are `generate` and `generate_text`.

    Raises:
        ArtifactError: The directory holds no complete model.
        ToolError: This machine lacks something that the device needs; the message has the command that installs it.
        UsageError: The directory contains several models, or a checkpoint; or the backend or device is unknown.
    """
    from awq2trt.runtime.choice import load_model
    from awq2trt.runtime.ort.loading import DeviceOptions

    options = DeviceOptions(device, trust_library=trust_library)
    return load_model(Path(directory), options, backend=backend, golden=golden, progress=progress)


def evaluate(
    models: StrPath | Sequence[StrPath],
    on: StrPath | TextWindows | TaskExamples | CaptionedImages,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Iterator[EvalResult]:
    """Measures perplexity on a text or on captions of images, or zero-shot accuracy in a task: `awq2trt eval`.

        for result in awq2trt.evaluate(["smollm2-135m-instruct", "out/checkpoint", "out/onnx"], "novel.txt"):
            print(result.model, result.measured.value)

        (result,) = awq2trt.evaluate("out/onnx", awq2trt.TaskExamples("piqa", Path("piqa-valid.jsonl"), limit=200))
        print(result.measured.accuracy)

    Args:
        models: Any number of original models, quantized checkpoints and ONNX models.
        on: A text, a `TextWindows` to say how much of it, a `TaskExamples` or `CaptionedImages`. A text is a .txt or
            .jsonl file, or a data set's name. Tasks are scored as lm-evaluation-harness scores them.
        device: Where PyTorch or ONNX Runtime computes; a model built for `cuda` always runs on the GPU.
        progress: Receives the progress of the work; None for silence.

    Returns:
        One result for every model, in order. Each model is measured when the iterator reaches it.

    Raises:
        UsageError: The device is not there, the task is unknown or its file cannot be read. While the results are read:
            the text cannot be read or is too short.
        Awq2trtError: While the results are read: a model cannot be opened.
    """
    from awq2trt.evaluation.results import CaptionedImages, EvalRequest, TaskExamples, TextWindows
    from awq2trt.stages.evaluate import eval_stage

    measured_on = on if isinstance(on, TextWindows | TaskExamples | CaptionedImages) else TextWindows(str(on))
    return eval_stage(EvalRequest(_names(models), measured_on, device), _or_silent(progress))


def check(
    directory: StrPath,
    *,
    model: StrPath | None = None,
    checkpoint: StrPath | None = None,
    text: StrPath | None = None,
    tokens: int = 192,
    output: StrPath | None = None,
    bisect: bool = False,
    progress: Progress | None = None,
) -> CheckOutcome:
    """Compares every stage of a build with the one before it: `awq2trt check`.

        outcome = awq2trt.check("out")
        if not outcome.result.passed:
            print(outcome.result.first_failure())

    Args:
        directory: The directory that `build` wrote, or a checkpoint, ONNX model or engine in it.
        model: The original model; None for the one that the manifest names.
        checkpoint: The checkpoint of an ONNX model; None for the one beside it.
        text: A .txt or .jsonl file, or a data set's name; None for a text of our own.
        tokens: How many tokens of it to use.
        output: Where to write files that repeat the check with polygraphy; None for `check` beside the checkpoint.
        bisect: Reduce a failing block of the exported model to the nodes that fail.
        progress: Receives the progress of the work; None for silence.

    Returns:
        The findings, stage by stage. A failed check is a result, not an exception.

    Raises:
        ToolError: polygraphy is not installed.
        ArtifactError: A directory is incomplete.
        UsageError: The text has no tokens, or a part of the build is missing.
    """
    from awq2trt.stages.check import CheckRequest, check_stage

    request = CheckRequest(
        Path(directory),
        model=None if model is None else str(model),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        text=None if text is None else str(text),
        tokens=tokens,
        output=None if output is None else Path(output),
        bisect=bisect,
    )
    return check_stage(request, _or_silent(progress))


def check_golden(directory: StrPath, device: str | None = None) -> GoldenOutcome:
    """Runs a model's golden inputs and compares with its golden outputs: `awq2trt check --golden`.

        assert awq2trt.check_golden("out/onnx").passed

    Args:
        directory: An ONNX model, a model built for `cpu` or `cuda`, or an engine; nothing else is needed.
        device: Where ONNX Runtime runs it; None for the device that it was built for, or else the CPU.

    Returns:
        The findings, call by call. A failed check is a result, not an exception.

    Raises:
        ArtifactError: The directory holds no complete model, or its model has no golden outputs.
        ToolError: TensorRT refuses the engine.
    """
    from awq2trt.stages.check import golden_stage

    return golden_stage(Path(directory), device)


def _names(models: StrPath | Sequence[StrPath]) -> tuple[str, ...]:
    """The models as a list, as stages take them; a single one may be given by itself."""
    return (str(models),) if isinstance(models, str | PathLike) else tuple(map(str, models))


def _or_silent(progress: Progress | None) -> Progress:
    return progress or SilentProgress()
