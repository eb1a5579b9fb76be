"""The proof that an import lost nothing: it names what differs, and then no model is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from foreign_checkpoints import FOREIGN, save_foreign
from numpy.typing import NDArray

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.layouts import LAYOUTS
from awq2trt.errors import ArtifactError
from awq2trt.onnx_export import export_onnx
from awq2trt.onnx_export.external_data import ExternalDataWriter
from awq2trt.onnx_export.proof import DEFINITIONS, prove_import
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.stages.export import ExportRequest, export_stage

UP = "model.layers.0.mlp.up_proj"


class _Notes(SilentProgress):
    """Records the notes that it receives."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_every_layout_is_defined_once_more() -> None:
    assert set(DEFINITIONS) == {layout.name for layout in LAYOUTS}


def test_the_proof_finds_a_single_wrong_nibble(tmp_path: Path) -> None:
    save_foreign(tmp_path / "foreign", FOREIGN["gptq"])
    (tmp_path / "onnx").mkdir()
    checkpoint = QuantizedCheckpoint.open(tmp_path / "foreign")
    export_onnx(checkpoint, tmp_path / "onnx")
    model = ir.load(tmp_path / "onnx" / "model.onnx")
    tensor = model.graph.initializers[f"{UP}.codes"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    data = bytearray((tmp_path / "onnx" / "model.onnx.data").read_bytes())
    data[(tensor.offset or 0) + 100] ^= 0x10
    (tmp_path / "onnx" / "model.onnx.data").write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{UP}: the exported weight is not the checkpoint's") as caught:
        prove_import(checkpoint, ir.load(tmp_path / "onnx" / "model.onnx"), SilentProgress())
    row, column = 200 // 64, 200 % 64 + 1  # byte 100 holds codes 200 and 201, the changed one in its high half
    assert f"[{row}, {column}]" in caught.value.what


def test_a_type_that_rounds_the_scales_is_told(tmp_path: Path) -> None:
    save_foreign(tmp_path / "foreign", FOREIGN["awq"])
    notes = _Notes()
    request = ExportRequest(tmp_path / "foreign", tmp_path / "onnx", ExportOptions(dtype="bfloat16"))
    export_stage(request, notes)
    assert any("largest dequantization difference: 0.0" in note for note in notes.notes)
    assert any("--dtype" in note for note in notes.notes)


@pytest.mark.parametrize("kind", ["codes", "scales", "zeros"])
def test_an_export_that_differs_is_refused_and_leaves_no_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_int4, write_float = ExternalDataWriter.write_int4, ExternalDataWriter.write_float

    def wrong_int4(writer: ExternalDataWriter, name: str, codes: NDArray[np.uint8]) -> ir.ExternalTensor:
        return write_int4(writer, name, codes ^ np.uint8(1) if name == f"{UP}.{kind}" else codes)

    def wrong_float(
        writer: ExternalDataWriter, name: str, value: NDArray[np.generic], dtype: ir.DataType
    ) -> ir.ExternalTensor:
        changed = np.nextafter(value, value.dtype.type(1)) if name == f"{UP}.{kind}" else value
        return write_float(writer, name, changed, dtype)

    monkeypatch.setattr(ExternalDataWriter, "write_int4", wrong_int4)
    monkeypatch.setattr(ExternalDataWriter, "write_float", wrong_float)
    save_foreign(tmp_path / "foreign", FOREIGN["gptq"])
    with pytest.raises(ArtifactError, match=rf"{UP}: the exported weight is not the checkpoint's: expected"):
        export_stage(ExportRequest(tmp_path / "foreign", tmp_path / "onnx", ExportOptions()), SilentProgress())
    assert not (tmp_path / "onnx" / "manifest.json").exists()


def test_a_reading_that_differs_from_the_definition_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The proof compares the graph with the file itself, not with what the reader makes of it.
    from awq2trt.checkpoint.layouts import gptq

    monkeypatch.setattr(gptq, "_plus_one", lambda zeros, packed: zeros)
    save_foreign(tmp_path / "foreign", FOREIGN["gptq"])
    with pytest.raises(ArtifactError, match="the exported weight is not the checkpoint's"):
        export_stage(ExportRequest(tmp_path / "foreign", tmp_path / "onnx", ExportOptions()), SilentProgress())


@pytest.mark.parametrize(("layout", "method"), [("awq", "awq"), ("gptq", "gptq"), ("compressed", "compressed-tensors")])
def test_the_manifest_of_an_import_names_its_method(layout: str, method: str, tmp_path: Path) -> None:
    save_foreign(tmp_path / "foreign", FOREIGN[layout])
    request = ExportRequest(tmp_path / "foreign", tmp_path / "onnx", ExportOptions())
    assert export_stage(request, SilentProgress()).manifest.contents.quantization.method == method
