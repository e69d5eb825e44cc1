import pytest
from search_toys import choices, quantized

import bevquant as bq
from bevquant.quant.genes import thesis_genes
from bevquant.search.space import space, thesis_space


def test_default_space_has_a_gene_for_every_layer() -> None:
    found = space(quantized())
    layers = [gene.layers for gene in found.genes]
    assert layers == [
        ("camera.0",),
        ("camera.2",),
        ("lidar.0",),
        ("fuser.1",),
        ("head.scores",),
        ("head.out",),
    ]
    assert found.genes[0].choices == (bq.W2A8, bq.W4A8, bq.W8A8, bq.W16A16)


def test_product_of_activations_has_choices_that_differ_in_activation_bits_only() -> None:
    genes = {gene.layers[0]: gene for gene in space(quantized()).genes}
    assert genes["head.scores"].choices == (bq.W8A8, bq.W16A16)
    without = space(quantized(), choices(2, 4, 8))
    assert "head.scores" not in {gene.layers[0] for gene in without.genes}
    assert without.pinned["head.scores"] == bq.W8A8


def test_alphabet_of_a_kind_pins_and_ties() -> None:
    found = space(
        quantized(),
        {"linear": choices(4, 2), "*": choices(8)},
        pinned={"lidar.*": None, "head.out": bq.W8A8},
        tied=["camera.*"],
    )
    assert [gene.layers for gene in found.genes] == [("camera.0", "camera.2"), ("fuser.1",)]
    assert found.genes[0].choices == choices(2, 4)
    assert found.sizes == (2, 2)
    assert found.size == 4
    assert found.assign((0, 1)) == {
        "camera.0": bq.W2A8,
        "camera.2": bq.W2A8,
        "lidar.0": None,
        "fuser.1": bq.W4A8,
        "head.scores": bq.W8A8,
        "head.out": bq.W8A8,
    }


def test_policy_is_what_apply_takes() -> None:
    model = quantized()
    found = space(model)
    bq.apply(model, found.policy((0, 1, 2, 3, 1, 0)))
    bits = [info.precision for info in bq.layers(model)]
    assert set(bits) == {bq.W2A8, bq.W4A8, bq.W8A8, bq.W16A16}


def test_thesis_space_leaves_all_other_layers_float() -> None:
    model = quantized()
    found = thesis_space(model)
    assert [gene.layers[0] for gene in found.genes] == thesis_genes(model)
    assert found.sizes == (4,) * len(found.genes)


def test_only_some_layers() -> None:
    found = space(quantized()).only(["camera.0", "camera.2"])
    assert found.sizes == (4, 4)
    assert found.assign((0, 0))["lidar.0"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pinned": {"lidr.*": None}}, r"rule 'lidr.\*' matches no layer"),
        ({"pinned": {"*": bq.W8A8}}, "every layer is pinned"),
        ({"tied": ["nothing.*"]}, "tied pattern 'nothing.*' matches no free layer"),
        ({"choices": {"conv2d": choices(4)}}, "kind 'conv2d'"),
        ({"choices": {"linear": choices(4, 8)}}, "no choices for kind 'matmul'"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(bq.BevquantError, match=message):
        space(quantized(), **arguments)


def test_float_model_is_refused() -> None:
    with pytest.raises(bq.BevquantError, match="call quantize first"):
        space(bq.restore(quantized()))
