"""Recipes: YAML in, frozen options out, and an error that names the key for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from awq2trt.errors import UsageError
from awq2trt.recipe import QuantizeOptions, Recipe, apply_flags, load_recipe
from awq2trt.scheme import QuantScheme

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def _written(directory: Path, text: str) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_recipe_and_an_empty_one_are_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(None) == load_recipe(_written(tmp_path, "# nothing\n")) == Recipe()


def test_values_are_read_and_the_rest_stay_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(_written(tmp_path, "quantize: {group_size: -1, symmetric: true}\nbuild: {target: rtx}\n"))
    assert recipe.quantize == QuantizeOptions(group_size=-1, symmetric=True)
    assert recipe.quantize.scheme == QuantScheme(bits=4, group_size=-1, zero_point=False)
    assert recipe.build.target == "rtx"
    assert recipe.export == Recipe().export


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_carry_their_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.build.target is not None
    assert f"--recipe recipes/{path.name}" in path.read_text(encoding="utf-8")


def test_recipes_ship() -> None:
    assert "smollm2-135m_w4g128" in [path.stem for path in RECIPES]


def test_flags_win_and_absent_flags_do_not(tmp_path: Path) -> None:
    recipe = load_recipe(_written(tmp_path, "quantize: {group_size: 64, samples: 7}\n"))
    merged = apply_flags(
        recipe, {"quantize": {"group_size": 32, "samples": None, "symmetric": False}, "build": {"target": "rtx3090"}}
    )
    assert merged.quantize == QuantizeOptions(group_size=32, samples=7)
    assert merged.build.target == "rtx3090"
    assert recipe.quantize.group_size == 64


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("quantize: {group_sise: 64}", "quantize.group_sise", "did you mean group_size"),
        ("quantise: {}", "quantise", "did you mean quantize"),
        ("zzz: 1", "zzz", "Known keys are: quantize, export, build"),
        ("quantize: {bits: '4'}", "quantize.bits", "got '4'"),
        ("quantize: {samples: 0}", "quantize.samples", "greater than or equal to 1, got 0"),
        ("quantize: {method: gptq2}", "quantize.method", "got 'gptq2'"),
        ("quantize: {symmetric: 1}", "quantize.symmetric", "got 1"),
        ("quantize: 4", "quantize", "got 4"),
        ("quantize: {bits: 5}", "--bits", "got 5 bits"),
        ("quantize: {group_size: 100}", "--group-size", "got a group size of 100"),
        ("build: {target: rtx4080}", "--target", "unknown target 'rtx4080'"),
        ("[1, 2]", "recipe.yaml", "got a list"),
        ("a: [", "recipe.yaml", "cannot be read as a recipe in YAML"),
        ("quantize:\n  bits: 4\n  bits: 3", "recipe.yaml", "the key 'bits' occurs twice"),
        ("build: {}\nbuild: {}", "recipe.yaml", "the key 'build' occurs twice"),
        ("a: !!python/object/apply:os.system ['true']", "recipe.yaml", "cannot be read as a recipe in YAML"),
    ],
)
def test_bad_recipes_name_the_key(tmp_path: Path, text: str, where: str, what: str) -> None:
    path = _written(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        load_recipe(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert where in message
    assert what in message
    assert raised.value.fix


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("section", "option", "value", "flag"),
    [("quantize", "samples", -3, "--samples"), ("export", "max_seq_len", 1, "--max-seq-len")],
)
def test_bad_flags_are_named_as_flags(section: str, option: str, value: int, flag: str) -> None:
    with pytest.raises(UsageError) as raised:
        apply_flags(Recipe(), {section: {option: value}})
    assert raised.value.where == flag
    assert str(value) in raised.value.what


def test_recipes_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().quantize.bits = 3  # type: ignore[misc]


def test_aliases_that_print_as_gigabytes(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    lines += ["quantize:", "  bits: *a8"]
    (tmp_path / "r.yaml").write_text("\n".join(lines[:-2]) + "\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert len(str(caught.value)) < 1000
    (tmp_path / "r.yaml").write_text("quantize:\n  bits:\n    " + "\n    ".join(lines[:-2]) + "\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe\xff", b"? " * 10_000, bytes(2 << 20)])
def test_recipes_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as a recipe"):
        load_recipe(tmp_path / "r.yaml")


def test_the_head_is_the_devices_matter_unless_the_user_says() -> None:
    """A checkpoint is for other tools to read, and a build is for a device."""
    assert Recipe().quantize.head_scheme is None
    assert Recipe().for_device().quantize.head_scheme == QuantScheme(8, 128, True)
    assert Recipe().for_device().for_device() == Recipe().for_device()
    for head, scheme in (("fp16", None), ("int4", QuantScheme(4, 32, True))):
        recipe = apply_flags(Recipe(), {"quantize": {"head": head}})
        assert recipe.for_device() == recipe
        assert recipe.quantize.head_scheme == scheme
    symmetric = apply_flags(Recipe(), {"quantize": {"symmetric": True}})
    assert symmetric.for_device().quantize.head_scheme == QuantScheme(8, 128, False)


@pytest.mark.parametrize("head", ["int2", "8", ""])
def test_heads_that_there_are_not(head: str) -> None:
    with pytest.raises(UsageError, match="'fp16', 'int8' or 'int4'") as caught:
        apply_flags(Recipe(), {"quantize": {"head": head}})
    assert caught.value.where == "--head"


def test_blocks_of_eight_bits_are_refused() -> None:
    with pytest.raises(UsageError, match="got 8 bits for the linears of blocks"):
        apply_flags(Recipe(), {"quantize": {"bits": 8}})


def test_sections_may_be_merged_and_keys_written_over(tmp_path: Path) -> None:
    text = "export: {max_seq_len: 64}\nquantize:\n  <<: {bits: 3, samples: 4}\n  bits: 2\n"
    assert load_recipe(_written(tmp_path, text)).quantize == QuantizeOptions(bits=2, samples=4)
