"""Flags that several commands of `awq2trt` have, and that mean the same in each.

Types of parameters, for typer. A default of None in a command is "not given": the recipe's value, else its default,
which the help names in brackets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from awq2trt.errors import UsageError
from awq2trt.methods import DEFAULT_METHOD, METHODS
from awq2trt.progress import STDERR

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Directory, .gguf file, hub id, or a model that a package provides.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the result goes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR, whatever it is.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run with the same options.")]
Recipe = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="YAML with these options; flags win.")]
Method = Annotated[str | None, typer.Option("--method", help=f"{', '.join(METHODS)}. [{DEFAULT_METHOD}]")]
Shape = Annotated[
    str | None, typer.Option("--shape", help="A published size instead of a model's files: llama-2-7b, mpt-30b, ...")
]
Effort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        help="How hard awq searches: fast, default, best or max. SmolLM2-135M takes about 4, 2 and 9 minutes and hours "
        "of a CPU core; the last three take about 1, 2 and 6 minutes of a busy H100. [default]",
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option("--init-from", metavar="DIR", help="Quantized checkpoint to refine, by --effort best or max."),
]
Tune = Annotated[
    bool | None,
    typer.Option("--tune/--no-tune", help="Tune all step sizes at the end. [--tune with max on text, else --no-tune]"),
]
ActOrder = Annotated[
    bool | None, typer.Option("--act-order/--no-act-order", help="GPTQ: largest inputs first. [--act-order]")
]
Bits = Annotated[int | None, typer.Option("--bits", help="Width of a weight: 2, 3 or 4. [4]")]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", help="Weights that share a scale: 32, 64, 128, -1 for a row. [128]")
]
Symmetric = Annotated[bool | None, typer.Option("--symmetric/--zero-points", help="[--zero-points]")]
Head = Annotated[
    str | None,
    typer.Option("--head", help="Head and tied embedding: fp16, int8 or int4. [int8 to build, fp16 to quantize]"),
]
QuantizeVision = Annotated[
    bool | None,
    typer.Option(
        "--quantize-vision/--no-quantize-vision",
        help="Models that see: also what they see with; with awq and gptq, --calib must have images. "
        "[--no-quantize-vision]",
    ),
]
Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        metavar="TEXT",
        help="self, a .txt or .jsonl file, a folder of pictures, or a data set's name. [self]",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", help="Calibration windows. [16]")]
Seqlen = Annotated[int | None, typer.Option("--seqlen", help="Tokens in a calibration window. [512]")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of what is drawn at random. [0]")]
MaxSeqLen = Annotated[
    int | None, typer.Option("--max-seq-len", help="Prompt and answer together. [the model's, at most 4096]")
]
MaxImageTokens = Annotated[
    int | None,
    typer.Option(
        "--max-image-tokens",
        help="Models that see images of any size: larger ones are made smaller. [1280, or 3/4 of --max-seq-len]",
    ),
]
MaxImages = Annotated[
    int | None,
    typer.Option("--max-images", help="OpenFlamingo: most images of a conversation. [8]"),
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="Of activations: float16 or bfloat16. [what the checkpoint says]")
]
FunctionBodies = Annotated[
    bool | None,
    typer.Option("--function-bodies/--no-function-bodies", help="Define custom nodes in standard ONNX operators."),
]
Cache = Annotated[str | None, typer.Option("--cache", help="Keys and values: fp16, or int8, half as large. [fp16]")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, or cuda:1 for the second GPU.")]
OwnDevice = Annotated[
    str | None,
    typer.Option("--device", help="Where to compute: cpu, cuda, or cuda:1 for the second GPU. [cpu; cuda with --gpus]"),
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, metavar="N", help="Share the work among N GPUs here, a process for each.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Limit for each process, like 8G; a GPU's with --gpus."),
]
CpuRanks = Annotated[
    int | None, typer.Option("--ranks", min=1, metavar="N", help="The same by N processes on the CPU.")
]
JetPack = Annotated[str | None, typer.Option("--jetpack", help="Orin: 7.2 or 6.2, what runs there. [7.2]")]
RunDevice = Annotated[
    str | None,
    typer.Option("--device", help="Where it runs: cpu, cuda, or cuda:1 for the second GPU. [fastest]"),
]
TrustLibrary = Annotated[
    bool, typer.Option("--trust-library", help="Load the operator library in DIR, code that came with the model.")
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime", "--backend", help="ort: ONNX Runtime's package; native: the C++ library; auto: it where it can."
    ),
]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: tokens that are there become less probable.")
]
CheckGolden = Annotated[
    bool, typer.Option("--golden/--no-golden", help="Check golden outputs at the first run on a GPU.")
]


def _text(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Refuses bytes that are not text, which Python keeps as lone surrogates."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"expected text in UTF-8, got other bytes at character {error.start}.",
            where=parameter.opts[0],
            fix="convert it, or set the locale that it is written in.",
        ) from error
    return value


Prompt = Annotated[str, typer.Option("--prompt", help="The question or text for the model.", callback=_text)]
System = Annotated[str | None, typer.Option("--system", help="System message: the role of the model.", callback=_text)]


def _writable(parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuses a file for results before the work whose results it is for."""
    from awq2trt.stages.readiness import require_file

    require_file(None if str(value) == STDERR else value, parameter.opts[0])
    return value


def _drawable(parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuses a plot that could not be drawn or written, before what it is to show is measured."""
    from awq2trt.stages.readiness import require_plots

    if value is not None:
        require_plots(parameter.opts[0])
    return _writable(parameter, value)


ResultsFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Results, for inspect --html.", callback=_writable),
]
NumbersFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="All numbers.", callback=_writable)]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="A table.", callback=_writable)]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="A page with plots, of a checkpoint.", callback=_writable),
]
PlotFile = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="PNG.", callback=_drawable)]
TraceFile = Annotated[
    Path | None,
    typer.Option("--profile", metavar="FILE", help="Where time went, for chrome://tracing.", callback=_writable),
]
JsonProgressFile = Annotated[
    Path | None,
    typer.Option("--json-progress", metavar="FILE", help="JSON lines for programs; - is stderr.", callback=_writable),
]
