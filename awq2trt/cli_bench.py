"""`awq2trt bench`: its flags, and the choice between its two benchmarks, of a model and of the kernels alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from awq2trt import cli_flags


def bench(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="An ONNX model, or a model built for cpu or cuda.")
    ] = None,
    shape: cli_flags.Shape = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Number of blocks of the shape. [all]")] = None,
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="Tokens in the prompt.")] = 4,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to generate.")] = 200,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", min=2, help="Positions in the cache. [the model's; for a shape, the fewest possible]"
        ),
    ] = None,
    ends: Annotated[
        list[int] | None, typer.Option("--end", help="Also time tokens where a conversation ends at this position.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Number of conversations at once.")] = 1,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Also time, in the same run, hf (fp16) or matmulnbits.")
    ] = None,
    device: cli_flags.RunDevice = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show where a token's time goes.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="Time the plugin library's kernels alone.")] = False,
    head: Annotated[
        str | None, typer.Option("--head", help="With --shape, the head: fp16, int8 or int4. [fp16]")
    ] = None,
    code_bits: Annotated[
        int, typer.Option("--code-bits", help="With --kernels, bits of a code: 4, or 8 for heads.")
    ] = 4,
    group_size: Annotated[int, typer.Option("--group-size", help="With --kernels, weights that share a scale.")] = 128,
    dtype: Annotated[str, typer.Option("--dtype", help="With --kernels: float16 or bfloat16.")] = "float16",
    json_file: cli_flags.NumbersFile = None,
    markdown_file: cli_flags.MarkdownFile = None,
    plot_file: cli_flags.PlotFile = None,
) -> None:
    """Measure the speed of a model, token by token, or of the kernels alone."""
    from awq2trt.stages.readiness import require_apart

    require_apart({"--json": json_file, "--markdown": markdown_file, "--plot": plot_file})
    if kernels:
        from awq2trt.machine.bench import WeightKind, bench_kernels, format_report, plot_report, write_report

        measured = bench_kernels(kind=WeightKind(code_bits, group_size), dtype=dtype)
        print(format_report(measured))
        if json_file is not None:
            write_report(measured, json_file)
        if plot_file is not None:
            plot_report(measured, plot_file)
        return
    from awq2trt.progress import terminal_progress
    from awq2trt.report.bench import bench_json, bench_lines, bench_markdown, plot_bench
    from awq2trt.stages.bench import BenchRequest, bench_stage

    request = BenchRequest(
        directory,
        shape=shape,
        layers=layers,
        prompt=prompt,
        tokens=tokens,
        context=context,
        batch=batch,
        against=tuple(against or ()),
        device=device,
        profile=profile,
        head=head,
        ends=tuple(ends or ()),
        command=("awq2trt", *sys.argv[1:]),
    )
    report = bench_stage(request, terminal_progress())
    print("\n".join(bench_lines(report)))
    if json_file is not None:
        json_file.write_text(bench_json(report), encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(bench_markdown(report), encoding="utf-8")
    if plot_file is not None:
        plot_bench(report, plot_file)
