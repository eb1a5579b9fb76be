"""Options of the stages, each with its default, and recipes that hold them: YAML -> frozen `Recipe`.

A recipe is a YAML file with the sections `quantize`, `export` and `build`. Its keys are the command line's flags with
underscores; a flag overrides the recipe, and the recipe overrides the defaults. An unknown key, or a value of the wrong
type, is an error that names the key.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from awq2trt.errors import UsageError
from awq2trt.foreign_files import read_bounded, reading
from awq2trt.methods import DEFAULT_METHOD, MethodName
from awq2trt.scheme import QuantScheme
from awq2trt.target import DEFAULT_JETPACK, find_jetpack, find_target

_MAX_BYTES: Final = 1 << 16
"""A generous limit: a recipe has a few dozen lines."""

_DEEPEST: Final = 20
"""The deepest nesting of lists that is read; a recipe has none."""

DEFAULT_DEVICE: Final = "cpu"
"""Where PyTorch computes unless the user says otherwise."""


ActivationDtype = Literal["float16", "bfloat16"]
"""Types of activations and of unquantized weights, by NumPy's names; the usual one is the first."""


HeadKind = Literal["fp16", "int8", "int4"]
"""The values of `--head`."""

HEAD_SCHEMES: Final = {"int8": (8, 128), "int4": (4, 32)}
"""Bits and group size of a quantized head. SmolLM2's INT4 head alone causes a KL divergence of 0.061 in groups of 128,
and of 0.028 in groups of 32 (12 x 512 tokens of WikiText-2 validation), which cost 2 % of the model's bytes."""

BUILD_HEAD: Final[HeadKind] = "int8"
"""The head of a model that is built for a device. Measured on SmolLM2-135M with INT4 blocks, whose head and embedding
are one weight: the KL divergence from the same model with an fp16 head is 0.0004 nats a token with int8 and 0.051 with
int4 (4 x 512 tokens of WikiText-2 validation); perplexities are 26.70 (fp16), 26.72 (int8) and 27.64 (int4), on 12 x
512."""


CacheKind = Literal["fp16", "int8"]
"""The values of `--cache`."""

SHORTEST_WINDOW: Final = 8
"""The fewest tokens that a calibration window may have."""

MOST_IMAGES: Final = 1024
"""A generous limit to the images of a conversation: OpenFlamingo was measured with at most 33."""

LARGEST_SEED: Final = 2**63 - 1
"""The largest seed that generators of random numbers take."""


class QuantizeOptions(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How weights are quantized.

        options = awq2trt.QuantizeOptions(bits=3, group_size=64, effort="best", calib="novel.txt")
        print(options.scheme.describe())

    Attributes:
        method: A name in `awq2trt.methods.METHODS`, where each is described.
        effort: How hard AWQ searches: `fast` as the paper does, `best` several times longer than `default`; `max`
            learns by gradients, for which a GPU is welcome.
        init_from: Directory of a quantized checkpoint to begin at, ours or another tool's: AWQ with `best` or `max`
            refines its codes instead of searching scales and grids. None to begin with the model.
        tune: After the last block, tune all step sizes by gradients, towards what the original model predicts. None is
            what the effort does: `max` tunes if it is calibrated on text, the others do not.
        act_order: GPTQ rounds the columns with the largest inputs first.
        bits: Width of a code in bits.
        group_size: Input channels that share a scale; -1 for a whole row.
        symmetric: No zero points.
        head: How the head is stored, and the embedding where the two are one weight: in the type of activations
            (`fp16`, whatever type that is), or quantized. None is `BUILD_HEAD` for a model that a device runs, and
            `fp16` for a checkpoint, which others read.
        quantize_vision: Whether the linears that a model sees with are quantized, too, as those of its blocks are, on
            the pictures of the calibration text.
        calib: Calibration text: `self` (the model writes it), a .txt or .jsonl file, or a data set's name; or a folder
            of pictures, with captions or without.
        samples: Calibration windows. 16 is what AWQ needs (paper, section 5.3: 16 sequences, where GPTQ takes 192).
        seqlen: Tokens in a window.
        seed: Seed of all random numbers.
    """

    method: MethodName = DEFAULT_METHOD
    effort: Literal["fast", "default", "best", "max"] = "default"
    init_from: str | None = Field(default=None, min_length=1)
    tune: bool | None = None
    act_order: bool = True
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    head: HeadKind | None = None
    quantize_vision: bool = False
    calib: str = Field(default="self", min_length=1)
    samples: int = Field(default=16, ge=1)
    seqlen: int = Field(default=512, ge=SHORTEST_WINDOW)
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)

    @property
    def scheme(self) -> QuantScheme:
        """The scheme that these options describe.

        Raises:
            UsageError: There is no such scheme.
        """
        return QuantScheme(bits=self.bits, group_size=self.group_size, zero_point=not self.symmetric).for_blocks()

    @property
    def head_scheme(self) -> QuantScheme | None:
        """The scheme of the head; None if the head is not quantized."""
        if self.head is None or self.head not in HEAD_SCHEMES:
            return None
        bits, group_size = HEAD_SCHEMES[self.head]
        return QuantScheme(bits=bits, group_size=group_size, zero_point=not self.symmetric)


class ExportOptions(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How the graph is written.

        options = awq2trt.ExportOptions(max_seq_len=2048, dtype="bfloat16")
        print(options.max_seq_len)

    Attributes:
        max_seq_len: Capacity of the KV cache, prompt and generated tokens together; None for the model's own limit,
            within reason.
        dtype: Type of activations and of unquantized weights; None for the checkpoint's: bfloat16 for a model whose
            activations leave fp16's range, otherwise float16.
        function_bodies: Whether the model also defines our operators by standard ONNX operators.
        max_image_tokens: Most tokens of an image, of a model that sees images of any size; larger images are made
            smaller. None for the model's own limit, within reason.
        max_images: Most images of a conversation, of a model whose decoder attends to them; None for 8.
    """

    max_seq_len: int | None = Field(default=None, ge=2)
    dtype: ActivationDtype | None = None
    function_bodies: bool = True
    max_image_tokens: int | None = Field(default=None, ge=1)
    max_images: int | None = Field(default=None, ge=1, le=MOST_IMAGES)


class BuildOptions(BaseModel, frozen=True, strict=True, extra="forbid"):
    """What the engine is for.

        options = awq2trt.BuildOptions(target="orin", jetpack="6.2")
        print(options.target)

    Attributes:
        target: A name in `TARGETS`; None until a flag or a recipe gives it.
        plugin: Whether to build with our plugin library, inside the engine, or with TensorRT's own kernels; None for
            ours where the library is installed.
        fusion: With our plugin library: whether to merge linears and use fused operators.
        cache: How keys and values are kept: in the type of activations (`fp16`, whatever type that is), or as codes of
            8 bits with a scale for each token and head, in half the memory.
        jetpack: The JetPack release on the Jetson that a kit is for.
    """

    target: str | None = None
    plugin: bool | None = None
    fusion: bool = True
    cache: CacheKind = "fp16"
    jetpack: str = DEFAULT_JETPACK


class Recipe(BaseModel, frozen=True, strict=True, extra="forbid"):
    """All options of `awq2trt build`, by stage.

        recipe = awq2trt.Recipe(
            quantize=awq2trt.QuantizeOptions(bits=3), build=awq2trt.BuildOptions(target="rtx4090")
        )
        print(recipe.model_dump_json())

    Attributes:
        quantize: How weights are quantized.
        export: How the graph is written.
        build: What the engine is for.
    """

    quantize: QuantizeOptions = QuantizeOptions()
    export: ExportOptions = ExportOptions()
    build: BuildOptions = BuildOptions()

    def for_device(self) -> Recipe:
        """Returns the recipe for a model that a device runs: a head that the user left open becomes `BUILD_HEAD`."""
        if self.quantize.head is not None:
            return self
        return self.model_copy(update={"quantize": self.quantize.model_copy(update={"head": BUILD_HEAD})})


def load_recipe(path: Path | None) -> Recipe:
    """Reads a recipe.

        recipe = awq2trt.load_recipe(Path("recipe.yaml"))
        print(recipe.quantize.bits)

    Args:
        path: A YAML file; None for the defaults.

    Raises:
        UsageError: It cannot be read, or a key or value in it makes no sense.
    """
    if path is None:
        return Recipe()
    if not path.is_file():
        raise UsageError("no such file.", where=str(path), fix="check the path given to --recipe.")
    with reading("a recipe in YAML", path, fix="correct the file, or its permissions.", error=UsageError):
        text = read_bounded(path, _MAX_BYTES).decode("utf-8-sig")
        _refuse_deep(text)
        values = _Loader(text).get_single_data()
    if values is None:
        return Recipe()
    if not isinstance(values, dict):
        raise UsageError(
            f"expected the sections {', '.join(Recipe.model_fields)}, got a {type(values).__name__}.",
            where=str(path),
            fix="see recipes/ for examples.",
        )
    return _validated(values, recipe=path)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that it refuses a key which occurs twice, where YAML's would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        again = next((name for name in names if names.count(name) > 1), None)
        if again is not None:
            raise ValueError(f"the key {again!r} occurs twice in one section")
        return super().construct_mapping(node, deep)


def _refuse_deep(text: str) -> None:
    """Refuses deeply nested brackets: for each of them PyYAML looks at all before it.

    Raises:
        ValueError: Too many brackets are open.
    """
    depth = 0
    for character in text:
        depth = max(0, depth + (character in "[{") - (character in "]}"))
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} brackets are open")


def flags_by_section(given: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Sorts a command's parameters into sections, as `apply_flags` takes them, and drops those that no recipe has.

    Args:
        given: Values by names of options.
    """
    return {
        section: {name: given[name] for name in _keys_of([section]) if name in given} for section in Recipe.model_fields
    }


def apply_flags(recipe: Recipe, flags: Mapping[str, Mapping[str, object]]) -> Recipe:
    """Returns the recipe with the given flags applied to it.

    Args:
        recipe: Gives the values for which no flag was given.
        flags: Values by section and option; None means that the flag was not given.

    Raises:
        UsageError: A flag's value makes no sense.
    """
    values: dict[str, dict[str, object]] = recipe.model_dump()
    for section, options in flags.items():
        values[section].update({name: value for name, value in options.items() if value is not None})
    return _validated(values, recipe=None)


def _validated(values: Mapping[str, Any], *, recipe: Path | None) -> Recipe:
    try:
        parsed = Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(error, recipe) from error
    try:
        _ = parsed.quantize.scheme
        if parsed.build.target is not None:
            find_target(parsed.build.target)
        find_jetpack(parsed.build.jetpack)
    except UsageError as error:
        if recipe is None:
            raise
        raise UsageError(error.what, where=f"{recipe}: {error.where}", fix=error.fix) from error
    return parsed


def _explained(error: ValidationError, recipe: Path | None) -> UsageError:
    """Explains the first mistake, in the words of the recipe or of the command line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    where = f"{recipe}: {key}" if recipe else _flag(path[-1])
    if first["type"] == "extra_forbidden":
        known = _keys_of(path[:-1])
        closest = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {closest[0]}? " if closest else ""
        return UsageError(f"unknown key {_shown(key)}.", where=where, fix=f"{hint}Known keys are: {', '.join(known)}.")
    message = first["msg"].removeprefix("Input ").rstrip(".")
    return UsageError(
        f"{message}, got {_shown(first['input'])}.", where=where, fix="see `awq2trt build --help` for what it takes."
    )


_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 2


def _shown(value: object) -> str:
    """A value of a recipe as a message shows it: aliases let a few lines of YAML expand to gigabytes."""
    return _SHORT.repr(value)


def _keys_of(section: list[str]) -> list[str]:
    if not section:
        return list(Recipe.model_fields)
    options: dict[str, type[BaseModel]] = {
        "quantize": QuantizeOptions,
        "export": ExportOptions,
        "build": BuildOptions,
    }
    return list(options[section[0]].model_fields)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
