"""The layer table against the one that was measured on the public network."""

import json
import re
from pathlib import Path

import pytest

from bevquant.errors import BevquantError
from bevquant.listing import list_layers

TABLE = Path(__file__).parents[2] / "shared/reference/layers_table.json"


def listed(model: str, path: Path, *, everything: bool = False) -> dict:
    list_layers(model, everything=everything, json=path)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def genes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return listed("bevfusion", tmp_path_factory.mktemp("listing") / "genes.json")["layers"]


def test_the_thesis_has_108_genes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = listed("bevfusion", tmp_path / "layers.json")
    assert table["kinds"] == {"conv2d": 31, "linear": 53, "matmul": 24}
    assert table["weights"] == 36_526_344
    # Table 3.3 of the thesis, in its own rounding.
    thesis = {"32": "1.17e+09", "16": "5.84e+08", "8": "2.92e+08", "4": "1.46e+08", "2": "7.31e+07"}
    assert {bits: f"{count:.2e}" for bits, count in table["weight_bits"].items()} == thesis
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 108 + 2
    assert "36,526,344" in printed[-1]


def test_genes_are_those_of_the_reference_in_its_order(genes: list[dict]) -> None:
    if not TABLE.is_file():
        pytest.skip(f"the reference's layer table is not here ({TABLE})")
    reference = json.loads(TABLE.read_text())["layers"]
    assert [layer["name"] for layer in genes] == [layer["path"] for layer in reference]
    for layer, expected in zip(genes, reference, strict=True):
        assert layer["kind"] == expected["kind"]
        assert layer["main_module"] == expected["module"]
        assert layer["weights"] == expected["weights"]
        assert layer["macs"] == expected["macs"]
        assert layer["weight_shape"] == expected["weight_shape"]


def test_everything_else_can_be_quantized_too(genes: list[dict], tmp_path: Path) -> None:
    table = listed("bevfusion", tmp_path / "all.json", everything=True)
    names = [layer["name"] for layer in table["layers"]]
    added = [layer for layer in table["layers"] if layer["name"] not in {g["name"] for g in genes}]
    assert len(added) == len(names) - 108
    kinds = {"sparse_conv": 21, "conv_transpose2d": 1}
    assert {k: table["kinds"][k] for k in kinds} == kinds
    # One in_proj of 3 x 128 x 128 is two layers here: queries, and keys with values.
    attention = [layer for layer in added if layer["kind"] == "linear"]
    assert len(attention) == 6
    assert sum(layer["weights"] for layer in attention) == 2 * (49_152 + 16_384)
    assert "pts_neck.deblocks.1.0" in names
    # Sums of bevfusion.md: sparse encoder, deblocks.1, Conv1d.
    sums = {
        kind: sum(layer["weights"] for layer in added if layer["kind"] == kind)
        for kind in ("sparse_conv", "conv_transpose2d", "conv1d")
    }
    assert sums == {"sparse_conv": 2_691_696, "conv_transpose2d": 262_144, "conv1d": 84_992}
    assert all(layer["macs"] for layer in table["layers"] if layer["kind"] != "sparse_conv")


def test_the_small_network_has_genes_of_the_same_names(genes: list[dict], tmp_path: Path) -> None:
    full = {layer["name"] for layer in genes}
    table = listed("bevfusion_small", tmp_path / "s.json")
    foreign = [layer["name"] for layer in table["layers"] if layer["name"] not in full]
    # Only its third BEV stage has no counterpart.
    assert all(re.match(r"pts_(backbone.blocks|neck.deblocks)\.2\.", name) for name in foreign)
    assert set(table["kinds"]) == {"conv2d", "linear", "matmul"}


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(BevquantError, match="did you mean 'bevfusion_small'"):
        list_layers("bevfusion_smal", everything=False, json=None)
