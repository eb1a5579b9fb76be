"""Flags that several commands of `awq2trt` share, with the same meaning in each.

Each is a type of a parameter, for typer. A default of None means "not given": then the recipe's value holds, or else
the recipe's default, which the help names in brackets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from awq2trt.methods import DEFAULT_METHOD, METHODS
from awq2trt.progress import STDERR

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory, .gguf file, hub id, or a model that a package provides.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the result goes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace whatever is in DIR.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run that had the same options.")]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="A YAML file with these options; flags override it.")
]
Method = Annotated[str | None, typer.Option("--method", help=f"{', '.join(METHODS)}. [{DEFAULT_METHOD}]")]
Shape = Annotated[
    str | None, typer.Option("--shape", help="A published size instead of a model's files: llama-2-7b, mpt-30b, ...")
]
Effort = Annotated[
    str | None, typer.Option("--effort", help="How hard awq searches: fast, default, best or max. [default]")
]
InitFrom = Annotated[
    str | None,
    typer.Option("--init-from", metavar="DIR", help="Quantized checkpoint to refine, by --effort best or max."),
]
Tune = Annotated[
    bool | None,
    typer.Option("--tune/--no-tune", help="Tune the step sizes of all blocks together at the end. [--no-tune]"),
]
ActOrder = Annotated[
    bool | None,
    typer.Option(
        "--act-order/--no-act-order", help="GPTQ: round the columns with the largest inputs first. [--act-order]"
    ),
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
Calib = Annotated[
    str | None,
    typer.Option(
        "--calib", metavar="TEXT", help="Calibration text: self, a .txt or .jsonl file, or a data set's name. [self]"
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", help="Number of calibration windows. [16]")]
Seqlen = Annotated[int | None, typer.Option("--seqlen", help="Tokens in a calibration window. [512]")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of random numbers. [0]")]
MaxSeqLen = Annotated[
    int | None, typer.Option("--max-seq-len", help="Tokens of prompt and answer together. [the model's, at most 4096]")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="Type of activations: float16 or bfloat16. [the checkpoint's]")
]
FunctionBodies = Annotated[
    bool | None,
    typer.Option(
        "--function-bodies/--no-function-bodies", help="Define our operators by standard ONNX operators, too."
    ),
]
Cache = Annotated[
    str | None, typer.Option("--cache", help="How keys and values are kept: fp16, or int8, half as large. [fp16]")
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, or cuda:1 for the second GPU.")]
OwnDevice = Annotated[
    str | None,
    typer.Option("--device", help="Where to compute: cpu, cuda, or cuda:1 for the second GPU. [cpu; cuda with --gpus]"),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus", min=1, metavar="N", help="Share the work among N GPUs of this machine, with a process for each."
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory", metavar="SIZE", help="Memory limit of each process, like 8G; of each GPU with --gpus."
    ),
]
CpuRanks = Annotated[
    int | None, typer.Option("--ranks", min=1, metavar="N", help="Share the work among N processes on the CPU.")
]
JetPack = Annotated[str | None, typer.Option("--jetpack", help="Orin: the JetPack that runs there, 7.2 or 6.2. [7.2]")]
RunDevice = Annotated[
    str | None,
    typer.Option("--device", help="Where it runs: cpu, cuda, or cuda:1 for the second GPU. [fastest]"),
]
TrustLibrary = Annotated[
    bool,
    typer.Option("--trust-library", help="Load the operator library in DIR, which is code that came with the model."),
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime", "--backend", help="ort: ONNX Runtime; native: the C++ library; auto: the C++ library if possible."
    ),
]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1, tokens that occurred already become less probable.")
]
CheckGolden = Annotated[
    bool, typer.Option("--golden/--no-golden", help="Check the golden outputs on the first run on a GPU.")
]


def _writable(parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuses a file for results before the work begins whose results would go there."""
    from awq2trt.stages.readiness import require_file

    require_file(None if str(value) == STDERR else value, parameter.opts[0])
    return value


ResultsFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the results, for inspect --html.", callback=_writable),
]
NumbersFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers as JSON.", callback=_writable)
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Write a Markdown table.", callback=_writable)
]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with plots about a checkpoint.", callback=_writable),
]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot as PNG.", callback=_writable)
]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--profile", metavar="FILE", help="Write where the time went, for chrome://tracing.", callback=_writable
    ),
]
JsonProgressFile = Annotated[
    Path | None,
    typer.Option(
        "--json-progress", metavar="FILE", help="Write progress as JSON lines; - is stderr.", callback=_writable
    ),
]
