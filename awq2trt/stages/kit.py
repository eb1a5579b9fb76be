"""The kit as a stage: what it would need, made into an artifact where it is not current, packed, and finished.

In: an exported decoder's artifact, and a target. Out: a prediction of memory and speed, and a kit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from awq2trt.artifact.manifest import MANIFEST_FILE, SUMS_FILE, Artifact, fingerprint_of, record_file
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import Contents, KitRecord
from awq2trt.engine.outlook import Outlook, outlook_lines
from awq2trt.engine.predict import AttentionPlan, bytes_beside, predict_footprint
from awq2trt.errors import ArtifactError, UnsupportedError, UsageError
from awq2trt.graph.fused_attention import fuses_attention
from awq2trt.io_contract import IoContract
from awq2trt.kit.archive import write_tar
from awq2trt.kit.delivery import finish_here, finish_over_ssh, is_orin
from awq2trt.kit.files import LIBRARY_FILE, TEMPLATES, KitPlan, kit_contract, kit_record, longest_prefill, write_kit
from awq2trt.machine.foreign_library import choose_plugin
from awq2trt.machine.foreign_runtime import BUILD_COMMAND, find_runtime_package
from awq2trt.models.families import DecoderSpec, SeeingSpec, describe_model, describe_vision
from awq2trt.models.positions import require_positions
from awq2trt.models.published_shapes import shape_config
from awq2trt.models.sources.base import CONFIG_FILE, QUANTIZATION_KEY, read_config
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SafetensorsFiles, describe_stored, has_weights
from awq2trt.models.spec import ModelSpec
from awq2trt.onnx_export.model import DEFAULT_MAX_SEQ_LEN
from awq2trt.opset import FEATURES_MULTIPLE
from awq2trt.progress import Progress
from awq2trt.recipe import QuantizeOptions, Recipe
from awq2trt.scheme import QuantScheme
from awq2trt.stages.opening import cache_error, current_or_none, exported_contents, file_hashes
from awq2trt.target import TARGETS, Target, find_jetpack


@dataclass(frozen=True)
class KitRequest:
    """What `awq2trt build` is asked for beyond the stages before.

    Attributes:
        target: A Jetson.
        output: The kit's directory.
        options: Options of all stages.
        overwrite: Replace what is in `output`, whatever it is.
        force: Make the kit although the prediction says that the model does not fit.
        tar: Also pack the kit into one file beside `output`.
        ssh: USER@HOST of the Jetson that shall finish the kit; None to leave it here, unless here is a Jetson Orin.
    """

    target: Target
    output: Path
    options: Recipe
    overwrite: bool = False
    force: bool = False
    tar: bool = False
    ssh: str | None = None


def spec_of(model: str | None, shape: str | None) -> ModelSpec:
    """The description of a model, or of a published size.

    Raises:
        UsageError: Both are given, or neither; or there is no such size.
    """
    if (model is None) == (shape is None):
        raise UsageError("expected either a model or a shape.", where="targets", fix="name MODEL, or --shape NAME.")
    return ModelSpec(describe_model(shape_config(shape))) if shape else model_spec(str(model))


def model_spec(model: str) -> ModelSpec:
    """The description of a model; of a directory without weights, what its config.json says."""
    directory = Path(model).expanduser()
    if not (directory / CONFIG_FILE).is_file():
        return open_source(model).model_spec
    config = read_config(directory)
    if not has_weights(directory):
        return ModelSpec(describe_model(config), describe_vision(config))
    tensors = SafetensorsFiles.in_directory(directory, config)
    decoder = describe_stored(config, tensors, quantized=QUANTIZATION_KEY in config)
    return ModelSpec(decoder, describe_vision(config, [*tensors]))


def predict_outlooks(spec: ModelSpec, options: Recipe) -> tuple[Outlook, ...]:
    """What a model will need on every target whose memory is known.

    Raises:
        UsageError: The model was made for fewer positions than are asked for.
    """
    options = options.for_device()
    decoder = spec.decoder
    if options.export.max_seq_len is not None:
        require_positions(decoder, options.export.max_seq_len, where="--max-seq-len")
    capacity = options.export.max_seq_len or min(decoder.max_positions, DEFAULT_MAX_SEQ_LEN)
    head = options.quantize.head_scheme
    beside = bytes_beside(decoder, spec.vision, head=head, linears=_schemes_of_sight(spec.vision, options.quantize))

    def outlook(target: Target) -> Outlook:
        fused = not target.is_kit or _attention_is_a_layer(decoder, capacity, options)
        prefill = longest_prefill(capacity, fused=fused)
        scheme, attention = options.quantize.scheme, AttentionPlan(fused, options.build.cache == "int8")
        footprint = predict_footprint(
            decoder, scheme, capacity, head=head, longest_prefill=prefill, attention=attention
        )
        return Outlook(target, replace(footprint, beside_bytes=beside))

    return tuple(outlook(target) for target in TARGETS.values() if target.memory_bytes is not None)


def _schemes_of_sight(vision: SeeingSpec | None, options: QuantizeOptions) -> dict[str, QuantScheme]:
    """Scheme of every linear that a model sees with and that the options quantize, by full name."""
    if vision is None or not options.quantize_vision:
        return {}
    from awq2trt.quantization.vision import VisionLinears  # needs PyTorch, which predictions otherwise do without

    return dict.fromkeys(VisionLinears.of(vision).shapes, options.scheme)


def _attention_is_a_layer(spec: DecoderSpec, capacity: int, options: Recipe) -> bool:
    """Whether a kit's engine has a layer for attention and its cache: our operator, or TensorRT's own."""
    return find_jetpack(options.build.jetpack).fused or (options.build.fusion and fuses_attention(spec, capacity))


def require_fit(model: str, request: KitRequest, progress: Progress) -> None:
    """Says what to expect on the Jetsons, and refuses before hours of work what cannot run.

    Raises:
        UnsupportedError: It does not fit, and is not forced.
    """
    spec = model_spec(model)
    require_kernels(spec.decoder)
    jetsons = [each for each in predict_outlooks(spec, request.options) if each.target.is_kit]
    for line in outlook_lines(jetsons):
        progress.note(line)
    outlook = next(each for each in jetsons if each.target == request.target)
    if outlook.fits or request.force:
        return
    needed, usable = outlook.footprint.run_bytes / 2**30, outlook.usable_bytes / 2**30
    raise UnsupportedError(
        f"running the model takes {needed:.1f} GiB, but a {request.target.title} has only {usable:.1f} GiB for it.",
        where=f"--target {request.target.name}",
        fix="use a shorter --max-seq-len, a smaller model or a larger Jetson; --force builds the kit anyway.",
    )


def require_kernels(spec: DecoderSpec) -> None:
    """Refuses a model with a linear for which the plugin library has no kernel.

    Raises:
        UnsupportedError: It has one.
    """
    for name in spec.block.linears:
        features = spec.linear_shape(name)[1]
        if features % FEATURES_MULTIPLE:
            raise UnsupportedError(
                f"the plugin library has no kernel for a linear with K = {features}: it takes multiples of "
                f"{FEATURES_MULTIPLE}.",
                where=spec.prefix(0) + name,
                fix="build for an RTX card, or use a model with other widths.",
            )


def make_kit(onnx: Artifact, spec: ModelSpec, request: KitRequest, progress: Progress) -> Artifact:
    """Returns the kit of an exported decoder; it is made only if it is not current.

    Raises:
        ToolError: There is no plugin library for the Jetson.
        UnsupportedError: The model cannot be written for the JetPack.
    """
    contents = exported_contents(onnx, spec)
    decoder = contents.decoder
    if decoder is None:
        raise ArtifactError("the manifest describes no decoder.", where=str(onnx.directory), fix="export it again.")
    int8_cache = request.options.build.cache == "int8"
    plan = _plan_kit(contents, decoder, spec, request)
    record = kit_record(plan, contents)
    fingerprint = _kit_fingerprint(onnx, plan, record, int8_cache=int8_cache)
    current = current_or_none(request.output, "kit", fingerprint, progress)
    if current is not None:
        return current
    _note_what_is_missing(plan, progress)
    expected_bytes = sum(file.size_bytes for file in onnx.manifest.files.values())
    with create_artifact(
        request.output, "kit", fingerprint, overwrite=request.overwrite, expected_bytes=expected_bytes
    ) as draft:
        operators = write_kit(onnx, contents.graphs, draft.files, plan, record)
        beside = {
            name: graph.model_copy(update={"io": kit_contract(graph.io)}) for name, graph in contents.beside.items()
        }
        contents = contents.model_copy(update={"graphs": {**contents.graphs, **beside}})
        contents = contents.with_engines(kit_contract(decoder, int8_cache=int8_cache))
        return draft.publish(contents.model_copy(update={"kit": record, "operators": operators}))


def _plan_kit(contents: Contents, decoder: IoContract, spec: ModelSpec, request: KitRequest) -> KitPlan:
    """What the kit of an exported model will hold, and what its Jetson needs to finish it."""
    jetpack = find_jetpack(request.options.build.jetpack)
    outlook = next(each for each in predict_outlooks(spec, request.options) if each.target == request.target)
    fused = _attention_is_a_layer(spec.decoder, decoder.capacity, request.options)
    return KitPlan(
        target=request.target,
        jetpack=jetpack,
        plugin=choose_plugin(request.target, jetpack),
        runtime=find_runtime_package(),
        footprint=outlook.footprint,
        longest_prefill=longest_prefill(decoder.capacity, fused=fused),
        fusion=request.options.build.fusion,
        cache_error=cache_error(spec) if request.options.build.cache == "int8" else 0.0,
        model=contents.source.model,
        scheme=contents.quantization.scheme.describe(),
    )


def _kit_fingerprint(onnx: Artifact, plan: KitPlan, record: KitRecord, *, int8_cache: bool) -> str:
    """Fingerprint of a kit: of the model, the plan, and every file that goes into it."""
    library, sources = plan.plugin.library, plan.plugin.sources
    return fingerprint_of(
        kind="kit",
        onnx=file_hashes(onnx.manifest.files),
        record=record,
        fusion=plan.fusion,
        int8_cache=int8_cache,
        plugin=record_file(library.path) if library else {name: record_file(path) for name, path in sources.items()},
        runtime={name: record_file(path) for name, path in plan.runtime.items()},
        templates=[record_file(path) for path in TEMPLATES],
    )


def _note_what_is_missing(plan: KitPlan, progress: Progress) -> None:
    if plan.plugin.library is None:
        progress.note(
            f"JetPack {plan.jetpack.version}: the kit carries the plugin library's sources, which the Jetson compiles"
        )
    if not plan.runtime:
        progress.note(f"the kit has no C++ library: none was built for the Jetson ({BUILD_COMMAND} builds it)")


def deliver(kit: Artifact, request: KitRequest, progress: Progress) -> None:
    """Packs a kit if that is asked for, and has it finished where that can be done.

    Raises:
        BuildError: The kit's script refuses or fails; it has said why.
    """
    files = (*kit.manifest.files, MANIFEST_FILE, SUMS_FILE)
    if request.tar:
        archive = kit.directory.with_name(f"{kit.directory.name}.tar")
        write_tar(kit.directory, files, archive)
        progress.note(f"{archive}: {archive.stat().st_size / 1e6:,.1f} MB")
    options = _script_options(files, force=request.force)
    if request.ssh is not None:
        finish_over_ssh(kit.directory, files, request.ssh, options)
    elif is_orin():
        finish_here(kit.directory, options)


def _script_options(files: Sequence[str], *, force: bool) -> list[str]:
    return ["--force"] * force + ["--compile"] * (LIBRARY_FILE not in files)
