"""Checks before the first block whatever can be known by then, so that hours of work do not end in a refusal.

In: an opened model, options, and where results go. Out: nothing, or the error that a later stage would raise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from awq2trt.artifact.folder import refuse_link
from awq2trt.artifact.manifest import MANIFEST_FILE, Kind
from awq2trt.artifact.opening import CHECKPOINT_DIRECTORY, ONNX_DIRECTORY
from awq2trt.artifact.publish import require_replaceable, require_space
from awq2trt.errors import ToolError, UsageError
from awq2trt.foreign_files import read_json, reading
from awq2trt.images.pairs import ImageText, is_image_text, read_pairs
from awq2trt.machine.foreign_library import choose_plugin
from awq2trt.machine.foreign_runtime import find_runtime_package
from awq2trt.methods import METHODS
from awq2trt.models.families import DecoderSpec
from awq2trt.models.positions import require_positions
from awq2trt.models.sources.base import ModelSource, files_beside_weights
from awq2trt.progress import STDERR, Progress
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.target import CPU_TARGET, Target, find_jetpack
from awq2trt.tracing import span

_WEIGHTS: Final = (".safetensors", ".gguf", ".onnx")

_STAGES: Final[tuple[tuple[str, Kind], ...]] = ((CHECKPOINT_DIRECTORY, "checkpoint"), (ONNX_DIRECTORY, "onnx"))


def require_whole_model(source: ModelSource, progress: Progress) -> None:
    """Refuses a model that lacks a tensor, or whose tokenizer does not open or has ids beyond the embedding.

    Raises:
        CheckpointError: A tensor is missing or has a wrong shape, or the tokenizer cannot be read or belongs to another
            model.
    """
    from awq2trt.text.tokenizer import require_tokenizer

    source.require_tensors()
    with progress.task("checking the tokenizer", total=1) as advance:
        with span("check the tokenizer"):
            require_tokenizer(source)
        advance(1)


def require_calibration(source: ModelSource, options: QuantizeOptions) -> None:
    """Refuses calibration windows that are longer than the model's positions, and images that it cannot use or lacks.

    Raises:
        UsageError: Windows are too long; a model of text is given images; step sizes would have to be tuned on images;
            or what a model sees with is to be quantized without images, or it sees nothing.
    """
    if options.quantize_vision:
        _require_sight(source, options)
    if not METHODS[options.method].uses_text:
        return
    require_positions(source.spec, options.seqlen, where="--seqlen")
    if not is_image_text(Path(options.calib).expanduser()):
        return
    if source.vision is None:
        raise UsageError(
            "expected text, got images, which this model cannot see.",
            where=f"--calib {options.calib}",
            fix="name a .txt or .jsonl file of text, or a model that sees images.",
        )
    if options.tune:
        raise UsageError(
            "step sizes can only be tuned on text.",
            where="--tune",
            fix="leave --tune out, or name a text with --calib.",
        )
    require_images(read_pairs(Path(options.calib).expanduser()))


def _require_sight(source: ModelSource, options: QuantizeOptions) -> None:
    """Refuses to quantize what a model sees with if there is no such thing, or nothing to show it.

    Raises:
        UsageError: It is a model of text, or the calibration text is missing or has no images although the method uses
            text.
    """
    if source.vision is None:
        raise UsageError(
            "expected a model that sees images, got a model of text, which has nothing to see with.",
            where="--quantize-vision",
            fix="leave --quantize-vision out.",
        )
    from awq2trt.text.windows import SELF

    path = Path(options.calib).expanduser()
    if not METHODS[options.method].uses_text or is_image_text(path):
        return
    if not path.exists() and options.calib != SELF:
        raise UsageError(
            "expected images to calibrate what the model sees with, but there is no such folder or file.",
            where=f"--calib {options.calib}",
            fix="correct the path; or use --method rtn, which needs no images.",
        )
    raise UsageError(
        f"expected images to calibrate what the model sees with, got --calib {options.calib}, which has none.",
        where="--quantize-vision",
        fix="name a folder of images, or a .jsonl file with images, with --calib; or use --method rtn, which needs "
        "none.",
    )


def require_images(pairs: Iterable[ImageText]) -> None:
    """Refuses conversations about pictures that are missing.

    Raises:
        UsageError: A picture is missing.
    """
    for pair in pairs:
        for image in pair.images:
            with reading("the name of an image", pair.where, fix="mend it.", error=UsageError):
                found = image.is_file()
            if not found:
                raise UsageError("no such image.", where=f"{pair.where}: {image}", fix="correct its name.")


def require_exportable(source: ModelSource, options: ExportOptions) -> None:
    """Refuses a cache that is longer than the model's positions, and a model that sees without an image processor.

    Raises:
        UsageError: The cache is too long.
        CheckpointError: There is no processor.
        UnsupportedError: The processor is of an unknown kind, or makes something else of images than the tower takes.
    """
    if source.vision is not None:
        from awq2trt.images.processor import processor_of, require_fit

        require_fit(processor_of(source), source.vision, where=source.name)
    if options.max_seq_len is not None:
        require_positions(source.spec, options.max_seq_len, where="--max-seq-len")


def require_outputs(output: Path, target: Target, *, overwrite: bool, expected_bytes: int) -> None:
    """Refuses a build if one of its directories holds something else, or the disk has too little space for it.

    Args:
        output: Directory in which every stage gets a subdirectory.
        target: The target of the build.
        overwrite: Replace whatever is there.
        expected_bytes: Bytes that all stages need together.

    Raises:
        ArtifactError: A directory is a link or holds something else, or there is too little space.
    """
    for path in sorted(output.iterdir()) if output.is_dir() else ():
        if path.name.startswith((CHECKPOINT_DIRECTORY, ONNX_DIRECTORY, target.name)):  # also the log and the archive
            refuse_link(path)
    last: Kind = "kit" if target.is_kit else "lowered" if target.is_lowered else "engine"
    for name, kind in (*_STAGES, (target.name, last)):
        require_replaceable(output / name, kind, overwrite=overwrite)
    require_space(output, expected_bytes)


def require_target(target: Target, options: BuildOptions, *, ssh: str | None) -> None:
    """Refuses a target if this machine lacks what the last stage needs.

    Raises:
        ToolError: TensorRT, the plugin library, or a program is missing, or a library has another version.
        UnsupportedError: The plugin library is for another GPU.
        UsageError: The Jetson's name is empty, or no operator could write the cache.
    """
    require_cache(target, options)
    if target.is_kit:
        choose_plugin(target, find_jetpack(options.jetpack))
        find_runtime_package()
        require_ssh(ssh)
    elif not target.is_lowered:
        from awq2trt.engine.builder import import_tensorrt_rtx

        import_tensorrt_rtx()
        if options.plugin or options.cache == "int8":
            from awq2trt.machine.plugin_library import find_plugin_library

            find_plugin_library()


def require_cache(target: Target, options: BuildOptions) -> None:
    """Refuses an int8 cache without the operator that writes it; on the CPU, ONNX Runtime's own operators write it.

    Raises:
        UsageError: An int8 cache is wanted without that operator.
    """
    without = "--no-plugin" if options.plugin is False else "--no-fusion" if not options.fusion else None
    if options.cache == "int8" and target.name != CPU_TARGET and without is not None:
        raise UsageError(
            f"an int8 cache needs our fused attention operator, which {without} leaves out.",
            where="--cache int8",
            fix=f"leave {without} out, or build with --cache fp16.",
        )


def require_int8_attention(spec: DecoderSpec, target: Target, options: Recipe) -> None:
    """Refuses an int8 cache for a model whose attention our operator does not support.

    Raises:
        UnsupportedError: The operator does not support it.
    """
    from awq2trt.graph.fused_attention import fuses_attention
    from awq2trt.graph.int8_cache import no_operator_error
    from awq2trt.onnx_export.model import DEFAULT_MAX_SEQ_LEN

    capacity = options.export.max_seq_len or min(spec.max_positions, DEFAULT_MAX_SEQ_LEN)
    if options.build.cache == "int8" and target.name != CPU_TARGET and not fuses_attention(spec, capacity):
        raise no_operator_error(where="--cache int8")


def require_ssh(host: str | None) -> None:
    """Refuses a Jetson that cannot be reached because its name or a program is missing; None needs nothing.

    Raises:
        UsageError: The host's name is empty or not a name.
        ToolError: `ssh` or `rsync` is missing here.
    """
    from awq2trt.kit.delivery import ssh_command

    if host is not None:
        ssh_command(host)


def require_file(path: Path | None, flag: str) -> None:
    """Refuses a file for results if it could not be written once they exist; None needs nothing.

    Args:
        path: The file.
        flag: The flag that named the file, for errors.

    Raises:
        UsageError: Its folder is missing or not writable, or the file is not a regular one, or belongs to a model.
    """
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(
            f"{folder} is not a writable folder.", where=f"{flag} {path}", fix="create it, or name another."
        )
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError("the file cannot be written.", where=f"{flag} {path}", fix="name another file.")
    if path.exists() and _is_a_models(path):
        raise UsageError(
            "the file belongs to a model, and the results would replace it.",
            where=f"{flag} {path}",
            fix="name another file.",
        )


def require_apart(named: Mapping[str, str | Path | None]) -> None:
    """Refuses files of which one would be written over another.

    Args:
        named: Flag -> the file, or whatever else it names; None where it is not given.

    Raises:
        UsageError: Two flags name the same file.
    """
    found: dict[str, str] = {}
    for flag, path in named.items():
        if path is None or str(path) == STDERR:
            continue
        first = found.setdefault(os.path.realpath(Path(path).expanduser()), flag)
        if first != flag:
            raise UsageError(
                f"{first} names the same file.", where=f"{flag} {path}", fix=f"name another file with {flag}."
            )


def require_folder(path: Path, flag: str) -> None:
    """Refuses a folder for results that could not be made or written to when they are there.

    Args:
        path: The folder; it need not be there.
        flag: The flag that names another folder, for errors.

    Raises:
        UsageError: There is a file, or it may not be written to.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "is no folder" if not there.is_dir() else "may not be written to"
        raise UsageError(f"{there} {what}.", where=str(path), fix=f"name another folder with {flag}.")


def require_plots(flag: str) -> None:
    """Refuses a plot where nothing draws it.

    Raises:
        ToolError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ToolError("matplotlib is not installed.", where=flag, fix="pip install matplotlib")


def _is_a_models(path: Path) -> bool:
    """Whether a file is part of a checkpoint, a graph or an engine."""
    if path.name == MANIFEST_FILE or path.suffix in _WEIGHTS or path in files_beside_weights(path.parent):
        return True
    manifest = path.with_name(MANIFEST_FILE)
    listed = read_json(manifest).get("files") if manifest.is_file() else None
    return isinstance(listed, dict) and path.name in listed
