"""What can be known before the first block is known before the first block: hours of work do not end in a refusal.

In: an opened model, options, and where results go. Out: nothing, or the error that a later stage would give.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from awq2trt.artifact.folder import refuse_link
from awq2trt.artifact.manifest import MANIFEST_FILE, Kind
from awq2trt.artifact.opening import CHECKPOINT_DIRECTORY, ONNX_DIRECTORY
from awq2trt.artifact.publish import require_replaceable, require_space
from awq2trt.errors import UnsupportedError, UsageError
from awq2trt.foreign_files import read_json
from awq2trt.images.pairs import ImageText, is_image_text, read_pairs
from awq2trt.machine.foreign_library import choose_plugin
from awq2trt.machine.foreign_runtime import find_runtime_package
from awq2trt.methods import METHODS
from awq2trt.models.families import DecoderSpec
from awq2trt.models.positions import require_positions
from awq2trt.models.sources.base import ModelSource, files_beside_weights
from awq2trt.progress import Progress
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.target import CPU_TARGET, Target, find_jetpack

_WEIGHTS: Final = (".safetensors", ".gguf", ".onnx")

_STAGES: Final[tuple[tuple[str, Kind], ...]] = ((CHECKPOINT_DIRECTORY, "checkpoint"), (ONNX_DIRECTORY, "onnx"))


def require_whole_model(source: ModelSource, progress: Progress) -> None:
    """Refuses a model that lacks a tensor, or whose tokenizer does not open or gives ids that it has no row for.

    Raises:
        CheckpointError: A tensor is missing or misshapen, or the tokenizer cannot be read or is another model's.
    """
    from awq2trt.text.tokenizer import require_tokenizer

    source.require_tensors()
    with progress.task("checking the tokenizer", total=1) as advance:
        require_tokenizer(source)
        advance(1)


def require_calibration(source: ModelSource, options: QuantizeOptions) -> None:
    """Refuses windows that are longer than the model has positions, where the method uses any, and images in vain.

    Raises:
        UsageError: They are longer; there are images for a model of text; or the step sizes are to be tuned on images.
    """
    if not METHODS[options.method].uses_text:
        return
    require_positions(source.spec, options.seqlen, where="--seqlen")
    if not is_image_text(Path(options.calib).expanduser()):
        return
    if source.vision is None:
        raise UsageError(
            "expected text, got images: this is a model of text.",
            where=f"--calib {options.calib}",
            fix="name a .txt or .jsonl file of text, or a model that sees.",
        )
    if options.tune:
        raise UsageError("step sizes are tuned on text alone.", where="--tune", fix="leave it out, or name a text.")
    require_images(read_pairs(Path(options.calib).expanduser()))


def require_images(pairs: Iterable[ImageText]) -> None:
    """Refuses conversations about pictures that are not there.

    Raises:
        UsageError: One is not.
    """
    for pair in pairs:
        for image in pair.images:
            if not image.is_file():
                raise UsageError("no such image.", where=f"{pair.where}: {image}", fix="mend its name.")


def require_exportable(source: ModelSource, options: ExportOptions) -> None:
    """Refuses a cache that is longer than the model has positions, and a model that sees.

    Raises:
        UsageError: It is longer.
        UnsupportedError: The model sees, and there is no graph for what it sees with.
    """
    if source.vision is not None:
        raise UnsupportedError(
            f"{source.vision.family} sees, and so far only models of text are exported.",
            where=source.name,
            fix="quantize it with `awq2trt quantize`, and run the checkpoint with a tool that reads its layout.",
        )
    if options.max_seq_len is not None:
        require_positions(source.spec, options.max_seq_len, where="--max-seq-len")


def require_outputs(output: Path, target: Target, *, overwrite: bool, expected_bytes: int) -> None:
    """Refuses to begin a build one of whose directories is something else's, or whose results have no room.

    Args:
        output: Directory below which every stage gets one of its own.
        target: What is built for.
        overwrite: Replace what is there.
        expected_bytes: That all stages need together.

    Raises:
        ArtifactError: There is a link, something else, or too little space.
    """
    for path in sorted(output.iterdir()) if output.is_dir() else ():
        if path.name.startswith((CHECKPOINT_DIRECTORY, ONNX_DIRECTORY, target.name)):  # also the log and the archive
            refuse_link(path)
    last: Kind = "kit" if target.is_kit else "lowered" if target.is_lowered else "engine"
    for name, kind in (*_STAGES, (target.name, last)):
        require_replaceable(output / name, kind, overwrite=overwrite)
    require_space(output, expected_bytes)


def require_target(target: Target, options: BuildOptions, *, ssh: str | None) -> None:
    """Refuses a target for which this machine lacks what the last stage needs.

    Raises:
        ToolError: TensorRT, the plugin library, or a program is missing, or a library is of another version.
        UnsupportedError: The plugin library is for another GPU.
        UsageError: The Jetson has no name, or the cache is one that nothing would write.
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
    """Refuses an int8 cache without the operator that writes it; on the CPU, ONNX Runtime's own operators do.

    Raises:
        UsageError: It is asked for.
    """
    without = "--no-plugin" if options.plugin is False else "--no-fusion" if not options.fusion else None
    if options.cache == "int8" and target.name != CPU_TARGET and without is not None:
        raise UsageError(
            f"an int8 cache is written and read by our fused attention operator, which {without} leaves out.",
            where="--cache int8",
            fix=f"leave {without} out, or build with --cache fp16.",
        )


def require_int8_attention(spec: DecoderSpec, target: Target, options: Recipe) -> None:
    """Refuses an int8 cache for a model whose attention our operator does not know.

    Raises:
        UnsupportedError: It does not.
    """
    from awq2trt.graph.fused_attention import fuses_attention
    from awq2trt.graph.int8_cache import no_operator_error
    from awq2trt.onnx_export.model import DEFAULT_MAX_SEQ_LEN

    capacity = options.export.max_seq_len or min(spec.max_positions, DEFAULT_MAX_SEQ_LEN)
    if options.build.cache == "int8" and target.name != CPU_TARGET and not fuses_attention(spec, capacity):
        raise no_operator_error(where="--cache int8")


def require_ssh(host: str | None) -> None:
    """Refuses a Jetson that cannot be reached for want of a name or a program; None is for none.

    Raises:
        UsageError: The host's name is none.
        ToolError: `ssh` or `rsync` is missing here.
    """
    from awq2trt.kit.delivery import ssh_command

    if host is not None:
        ssh_command(host)


def require_models(models: tuple[str, ...]) -> None:
    """Refuses a list of models of which one is not there or not known, before the first is evaluated.

    Raises:
        Awq2trtError: As opening them does.
    """
    from awq2trt.artifact.manifest import MANIFEST_FILE, read_manifest
    from awq2trt.checkpoint.opening import open_any

    for model in models:
        path = Path(model)
        exported = (path / MANIFEST_FILE).is_file() and read_manifest(path, None).kind != "checkpoint"
        if not exported:
            open_any(model)


def require_file(path: Path | None, flag: str) -> None:
    """Refuses a file for results that could not be written when they are there; None is for none.

    Args:
        path: The file.
        flag: That names it, for errors.

    Raises:
        UsageError: Its folder is not there or may not be written, or it is no plain file, or a model's.
    """
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(
            f"{folder} is no folder that may be written to.", where=f"{flag} {path}", fix="make it, or name another."
        )
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError("it cannot be written.", where=f"{flag} {path}", fix="name another file.")
    if path.exists() and _is_a_models(path):
        raise UsageError(
            "it is a file of a model, which the results would replace.",
            where=f"{flag} {path}",
            fix="name another file.",
        )


def _is_a_models(path: Path) -> bool:
    """Whether a file is what a checkpoint, a graph or an engine is made of."""
    if path.name == MANIFEST_FILE or path.suffix in _WEIGHTS or path in files_beside_weights(path.parent):
        return True
    manifest = path.with_name(MANIFEST_FILE)
    listed = read_json(manifest).get("files") if manifest.is_file() else None
    return isinstance(listed, dict) and path.name in listed
