"""`awq2trt`: a subcommand for each function of the Python API: parses flags, calls it, prints the result.

Results go to stdout, progress and errors to stderr. An error has up to three lines, what, where and how to fix it, and
no traceback; an unknown flag exits with 2, a missing GPU that the C++ library needs with 3, other failures with 1,
Ctrl-C with 130.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from awq2trt import api, cli_flags
from awq2trt.cli_bench import bench
from awq2trt.report.failure import DEBUG_VARIABLE, explain, print_anything_
from awq2trt.version import __version__

_INTERRUPTED: Final = 130
"""128 + SIGINT, which shells report for a program that Ctrl-C ended."""


class _Commands(TyperGroup):
    """Runs a subcommand and explains the errors that it raises."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            # typer's own exceptions: exits, and usage errors, which it prints itself.
            if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "format_message"):
                raise
            if os.environ.get(DEBUG_VARIABLE):
                traceback.print_exc()
            raise typer.Exit(explain(error)) from None


app = typer.Typer(
    cls=_Commands,
    help=f"A Hugging Face checkpoint to a 4-bit (W4A16) TensorRT engine, on any machine. Version {__version__}.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # `--group_size` means `--group-size`.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda text: text.replace("_", "-"),
    },
)


@app.callback(invoke_without_command=True)
def _global_flags(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the log messages of libraries.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    if version:
        print(f"awq2trt {__version__}")
        raise typer.Exit
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO)
    else:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.command()
def build(
    model: cli_flags.Model,
    output: cli_flags.Output,
    target: Annotated[
        str | None, typer.Option("--target", help="What to build for: a name from `awq2trt targets`.")
    ] = None,
    recipe: cli_flags.Recipe = None,
    method: cli_flags.Method = None,
    effort: cli_flags.Effort = None,
    init_from: cli_flags.InitFrom = None,
    tune: cli_flags.Tune = None,
    act_order: cli_flags.ActOrder = None,
    bits: cli_flags.Bits = None,
    group_size: cli_flags.GroupSize = None,
    symmetric: cli_flags.Symmetric = None,
    head: cli_flags.Head = None,
    quantize_vision: cli_flags.QuantizeVision = None,
    calib: cli_flags.Calib = None,
    samples: cli_flags.Samples = None,
    seqlen: cli_flags.Seqlen = None,
    seed: cli_flags.Seed = None,
    max_seq_len: cli_flags.MaxSeqLen = None,
    max_image_tokens: cli_flags.MaxImageTokens = None,
    max_images: cli_flags.MaxImages = None,
    dtype: cli_flags.Dtype = None,
    function_bodies: cli_flags.FunctionBodies = None,
    plugin: Annotated[
        bool | None,
        typer.Option("--plugin/--no-plugin", help="Use our kernels or TensorRT's. [ours if the library is installed]"),
    ] = None,
    fusion: Annotated[
        bool | None,
        typer.Option("--fusion/--no-fusion", help="Merge each block into a few operators of our library. [--fusion]"),
    ] = None,
    cache: cli_flags.Cache = None,
    jetpack: cli_flags.JetPack = None,
    tar: Annotated[bool, typer.Option("--tar", help="Orin: also pack the kit into one file, DIR/TARGET.tar.")] = False,
    ssh: Annotated[
        str | None,
        typer.Option("--ssh", metavar="USER@HOST", help="Orin: copy the kit to this Jetson and finish it there."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Orin: make the kit even if it is predicted not to fit.")
    ] = False,
    device: cli_flags.Device = "cpu",
    overwrite: cli_flags.Overwrite = False,
) -> None:
    """Run all stages: checkpoint, ONNX model, and engine or kit below DIR. Stages that are current are skipped."""
    given = locals()
    from awq2trt.progress import terminal_progress
    from awq2trt.recipe import apply_flags, flags_by_section, load_recipe

    options = apply_flags(load_recipe(recipe), flags_by_section(given))
    api.build(
        model,
        output,
        recipe=options,
        device=device,
        overwrite=overwrite,
        force=force,
        tar=tar,
        ssh=ssh,
        on_artifact=lambda artifact: print(artifact.directory, flush=True),
        progress=terminal_progress(),
    )


@app.command()
def quantize(
    model: cli_flags.Model,
    output: cli_flags.Output,
    recipe: cli_flags.Recipe = None,
    method: cli_flags.Method = None,
    effort: cli_flags.Effort = None,
    init_from: cli_flags.InitFrom = None,
    tune: cli_flags.Tune = None,
    act_order: cli_flags.ActOrder = None,
    bits: cli_flags.Bits = None,
    group_size: cli_flags.GroupSize = None,
    symmetric: cli_flags.Symmetric = None,
    head: cli_flags.Head = None,
    quantize_vision: cli_flags.QuantizeVision = None,
    calib: cli_flags.Calib = None,
    samples: cli_flags.Samples = None,
    seqlen: cli_flags.Seqlen = None,
    seed: cli_flags.Seed = None,
    device: cli_flags.OwnDevice = None,
    gpus: cli_flags.Gpus = None,
    ranks: cli_flags.CpuRanks = None,
    max_memory: cli_flags.MaxMemory = None,
    resume: cli_flags.Resume = False,
    overwrite: cli_flags.Overwrite = False,
    json_progress: cli_flags.JsonProgressFile = None,
    profile: cli_flags.TraceFile = None,
) -> None:
    """Quantize a model to a 4-bit checkpoint."""
    given = locals()
    from awq2trt.progress import chosen_progress
    from awq2trt.recipe import apply_flags, flags_by_section, load_recipe
    from awq2trt.stages.many_ranks import RanksWanted, first_rank_writes, run_as_ranks, trace_of_rank, traced_stage
    from awq2trt.stages.readiness import require_apart

    options = apply_flags(load_recipe(recipe), flags_by_section(given)).quantize
    require_apart({"--calib": options.calib, "--json-progress": json_progress, "--profile": profile})
    wanted = RanksWanted(gpus, ranks, device)
    code = run_as_ranks(wanted, (sys.executable, "-m", "awq2trt", *sys.argv[1:]))
    if code is not None:
        raise typer.Exit(code)
    json_file, trace = first_rank_writes(json_progress), trace_of_rank(profile)
    with chosen_progress(json_file) as progress, traced_stage(trace, wanted.device):
        made = api.quantize_on_ranks(
            model,
            output,
            options,
            device=wanted.device,
            max_memory=max_memory,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    if made is not None:
        print(made.directory)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A quantized checkpoint, ours or another tool's.")
    ],
    output: cli_flags.Output,
    recipe: cli_flags.Recipe = None,
    max_seq_len: cli_flags.MaxSeqLen = None,
    max_image_tokens: cli_flags.MaxImageTokens = None,
    max_images: cli_flags.MaxImages = None,
    dtype: cli_flags.Dtype = None,
    function_bodies: cli_flags.FunctionBodies = None,
    overwrite: cli_flags.Overwrite = False,
) -> None:
    """Export a 4-bit checkpoint to an ONNX model."""
    from awq2trt.progress import terminal_progress
    from awq2trt.recipe import apply_flags, load_recipe

    given: dict[str, object] = {
        "max_seq_len": max_seq_len,
        "max_image_tokens": max_image_tokens,
        "max_images": max_images,
        "dtype": dtype,
        "function_bodies": function_bodies,
    }
    options = apply_flags(load_recipe(recipe), {"export": given}).export
    made = api.export(checkpoint, output, options, overwrite=overwrite, progress=terminal_progress())
    print(made.directory)


@app.command("eval")
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="One or more original models, checkpoints or ONNX models."),
    ],
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="Measure perplexity on a .txt or .jsonl file, or a data set."),
    ] = None,
    windows: Annotated[
        int, typer.Option("--windows", min=1, help="How many windows of the text to use, from its start.")
    ] = 8,
    seqlen: Annotated[int, typer.Option("--seqlen", min=2, help="Tokens in a window.")] = 1024,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Measure accuracy on piqa, arc-easy, winogrande or lambada; with --images, caption (CIDEr) or choice.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="FILE", help="The task's JSONL file.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", metavar="IMAGES", help="Measure perplexity of captions, or a --task: a folder or .jsonl file."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only this many examples or images.")] = None,
    device: cli_flags.Device = "cpu",
    json_file: cli_flags.ResultsFile = None,
) -> None:
    """Measure perplexity on a text or on captions of images, or a score in a task."""
    from awq2trt.errors import UsageError
    from awq2trt.evaluation.results import CaptionedImages, EvalRequest, TaskExamples, TextWindows
    from awq2trt.progress import terminal_progress
    from awq2trt.report.lines import eval_row, eval_title, results_json
    from awq2trt.stages.readiness import require_apart

    if [text, images or task].count(None) != 1 or (images is not None and data is not None):
        raise UsageError(
            "one of --text, --task with --data, and --images is needed.",
            where="eval",
            fix="--text FILE, or --task NAME --data FILE, or --images FOLDER, or --images FILE --task caption",
        )
    if task is not None and images is None and data is None:
        raise UsageError("there is no file for the task.", where="--data", fix=f"--task {task} --data FILE.jsonl")
    require_apart({"--text": text, "--data": data, "--images": images, "--json": json_file})
    on: TextWindows | TaskExamples | CaptionedImages = TextWindows(str(text), windows, seqlen)
    if images:
        on = CaptionedImages(images, limit, task)
    elif task and data:
        on = TaskExamples(task, data, limit)
    request = EvalRequest(tuple(models), on, device)
    results, measured = api.evaluate(models, on, device=device, progress=terminal_progress()), []
    print(eval_title(request))
    for result in results:
        print(eval_row(result), flush=True)
        measured.append(result)
    if json_file is not None:
        json_file.write_text(results_json(request, measured), encoding="utf-8")


@app.command()
def run(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="An ONNX model, an engine, or a model built for cpu or cuda.")
    ],
    prompt: cli_flags.Prompt,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Show an image; again for more. <image> in the prompt places it."),
    ] = None,
    backend: cli_flags.Runtime = "auto",
    device: cli_flags.RunDevice = None,
    system: cli_flags.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue plain text without the chat template.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1)] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 always takes the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample from the k most probable tokens; 0 for all.")] = 0,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Sample from the most probable tokens that together reach this probability."),
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Drop tokens less probable than this share of the most probable one.")
    ] = 0.0,
    repetition_penalty: cli_flags.RepetitionPenalty = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End the answer where this text would begin.")
    ] = None,
    golden: cli_flags.CheckGolden = True,
    trust_library: cli_flags.TrustLibrary = False,
) -> None:
    """Answer a prompt, printing the text as it is generated."""
    from awq2trt.progress import terminal_progress
    from awq2trt.runtime import Sampling, system_message, user_message

    sampling = Sampling(temperature, top_k, top_p, seed, min_p, repetition_penalty)
    model = api.load(
        directory,
        backend=backend,
        device=device,
        golden=golden,
        trust_library=trust_library,
        progress=terminal_progress(),
    )
    messages = [*([system_message(system)] if system else []), user_message(prompt)]
    pieces = model.generate(
        prompt if raw else messages,
        images=image or (),
        raw=raw,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        stop=stop or (),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def check(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The directory that build wrote, or a checkpoint, ONNX model or engine in it."
        ),
    ],
    golden: Annotated[
        bool,
        typer.Option("--golden", help="Compare only with the golden outputs beside the model; needs nothing else."),
    ] = False,
    device: cli_flags.RunDevice = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The original model. [the one that was quantized]")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="The checkpoint of an ONNX model. [the one beside it]"),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help=".txt or .jsonl file, or a data set's name. [our own]")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="How many tokens of it to use.")] = 192,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where files for polygraphy go. [check, in DIR]"),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Reduce a failing block to the nodes that fail, for a bug report.")
    ] = False,
) -> None:
    """Compare every stage with the one before it. The exit code is 1 if one differs."""
    from awq2trt.progress import terminal_progress
    from awq2trt.report.lines import check_lines, golden_lines

    if golden:
        found = api.check_golden(directory, device)
        passed, lines = found.passed, golden_lines(found)
    else:
        outcome = api.check(
            directory,
            model=model,
            checkpoint=checkpoint,
            text=text,
            tokens=tokens,
            output=output,
            bisect=bisect,
            progress=terminal_progress(),
        )
        passed, lines = outcome.result.passed, check_lines(outcome)
    print("\n".join(lines))
    if not passed:
        raise typer.Exit(1)


app.command()(bench)


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint, ONNX model or engine.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    html_file: cli_flags.HtmlFile = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FILE", help="A file that eval --json wrote, to show on the page."),
    ] = None,
) -> None:
    """Show what a directory holds and what it was made from; every file is verified."""
    from awq2trt.stages.inspect import inspect_stage, report_stage
    from awq2trt.stages.readiness import require_apart

    if html_file is not None:
        require_apart({"--results": results, "--html": html_file})
        print(report_stage(directory, html_file, results))
        return
    from awq2trt.report.lines import artifact_lines, inspection_json, linear_lines

    artifact, inspection = inspect_stage(directory)
    if as_json:
        print(inspection_json(artifact, inspection))
        return
    print("\n".join(artifact_lines(artifact)))
    if inspection is not None:
        print("\n".join(linear_lines(inspection)))


@app.command()
def targets(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Predict what this model needs there. A config.json is enough."),
    ] = None,
    shape: cli_flags.Shape = None,
    recipe: cli_flags.Recipe = None,
    bits: cli_flags.Bits = None,
    group_size: cli_flags.GroupSize = None,
    symmetric: cli_flags.Symmetric = None,
    head: cli_flags.Head = None,
    quantize_vision: cli_flags.QuantizeVision = None,
    max_seq_len: cli_flags.MaxSeqLen = None,
    cache: cli_flags.Cache = None,
    jetpack: cli_flags.JetPack = None,
) -> None:
    """List what can be built for; with MODEL or --shape, say whether it fits, and the fastest decoding possible."""
    given = locals()
    from awq2trt.engine.outlook import outlook_lines
    from awq2trt.recipe import apply_flags, flags_by_section, load_recipe
    from awq2trt.report.lines import target_lines

    if model is None and shape is None:
        print("\n".join(target_lines()))
        return
    from awq2trt.stages.kit import predict_outlooks, spec_of

    options = apply_flags(load_recipe(recipe), flags_by_section(given))
    print("\n".join(outlook_lines(predict_outlooks(spec_of(model, shape), options))))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what this machine can do, and the commands that install what is missing."""
    from awq2trt.machine.doctor import diagnosis_json, diagnosis_lines, examine

    diagnoses = examine()
    print(diagnosis_json(diagnoses) if as_json else "\n".join(diagnosis_lines(diagnoses)))


def main() -> None:
    """Entry point of the console script."""
    print_anything_()
    app()


if __name__ == "__main__":
    main()
