"""Reductions against numpy's and scipy's decompositions, and what a width may be."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.spatial.distance import pdist

from rayrec.errors import InputError
from rayrec.models.reductions import (
    Rows,
    autoencoder,
    clusters,
    lda,
    pca,
    permuted,
    random_projection,
    unit_length,
)

FloatArray = NDArray[np.float64]

ITEMS, GIVEN = 120, 12
UNNAMED = [0, 57]
CLASSES = np.random.default_rng(9).integers(5, size=ITEMS)


def embeddings() -> Rows:
    """Directions of unlike variance around unlike means of five classes; two items have no name."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(ITEMS, GIVEN)) * np.geomspace(3, 0.1, GIVEN) + rng.normal(size=(5, GIVEN))[CLASSES] + 2
    rows[UNNAMED] = 0
    return rows.astype(np.float32)


EMBEDDINGS = embeddings()
NAMED = np.delete(np.arange(ITEMS), UNNAMED)
METHODS: dict[str, Callable[[Rows, int], Rows]] = {
    "pca": pca,
    "random_projection": partial(random_projection, seed=1),
    "lda": partial(lda, classes_I=CLASSES),
    "autoencoder": partial(autoencoder, seed=1, epochs=2),
}


def up_to_sign(rows: Rows, like: FloatArray) -> FloatArray:
    return np.asarray(rows * np.sign(np.sum(rows * like, axis=0)), np.float64)


def test_pca_is_the_singular_value_decomposition() -> None:
    named = EMBEDDINGS[NAMED].astype(np.float64)
    left, values, _ = np.linalg.svd(named - named.mean(axis=0), full_matrices=False)
    expected = (left * values)[:, :4]
    np.testing.assert_allclose(up_to_sign(pca(EMBEDDINGS, 4)[NAMED], expected), expected, atol=1e-4)


def test_a_random_projection_keeps_distances_in_the_mean() -> None:
    def distances(rows: Rows) -> FloatArray:
        return pdist(rows[NAMED].astype(np.float64))  # type: ignore[no-any-return]

    means = [(distances(random_projection(EMBEDDINGS, GIVEN, seed=seed)) ** 2).mean() for seed in range(60)]
    assert np.mean(means) == pytest.approx((distances(EMBEDDINGS) ** 2).mean(), rel=0.05)
    one, other = (random_projection(EMBEDDINGS, 3, seed=seed) for seed in (1, 2))
    assert not np.allclose(one, other)
    twice = random_projection(2 * EMBEDDINGS, 3, seed=1)
    np.testing.assert_allclose(twice, 2 * one, rtol=1e-5)  # a linear map


def test_lda_is_the_eigenproblem_of_the_scatter_between_classes_and_within() -> None:
    named, classes = EMBEDDINGS[NAMED].astype(np.float64), CLASSES[NAMED]
    means = np.stack([named[classes == label].mean(axis=0) for label in range(5)])
    share = np.bincount(classes) / len(classes)
    centred = named - named.mean(axis=0)
    within = named - means[classes]
    overall = share @ means
    between = (share[:, None] * (means - overall)).T @ (means - overall)
    values, vectors = eigh(between, within.T @ within / len(named))
    expected = centred @ vectors[:, np.argsort(-values)[:3]]
    columns = lda(EMBEDDINGS, 3, CLASSES)[NAMED]
    scale = columns.std(axis=0) / expected.std(axis=0)
    np.testing.assert_allclose(up_to_sign(columns, expected), expected * scale, atol=1e-3)
    np.testing.assert_allclose(scale, scale[0], rtol=1e-3)  # every direction in the same units: spread within classes


def test_an_autoencoder_learns_what_pca_keeps() -> None:
    """Linear layers cannot rebuild more from their middle than PCA; trained, they come close."""

    def unexplained(rows: Rows) -> float:
        given = EMBEDDINGS[NAMED] - EMBEDDINGS[NAMED].mean(axis=0)
        known = rows[NAMED] - rows[NAMED].mean(axis=0)
        return float(((given - known @ np.linalg.lstsq(known, given, rcond=None)[0]) ** 2).sum())

    best = unexplained(pca(EMBEDDINGS, 3))
    started, trained = (unexplained(autoencoder(EMBEDDINGS, 3, seed=2, epochs=n, batch=16)) for n in (1, 60))
    assert best * 0.999 < trained < best * 1.25
    assert started > trained * 1.2


@pytest.mark.parametrize("method", METHODS)
def test_what_all_reductions_share(method: str) -> None:
    reduce = METHODS[method]
    rows = reduce(EMBEDDINGS, 4)
    assert rows.shape == (ITEMS, 4) and rows.dtype == np.float32
    assert np.array_equal(rows, reduce(EMBEDDINGS, 4))
    assert not rows[UNNAMED].any() and rows[NAMED].any(axis=1).all()
    named_alone = EMBEDDINGS[NAMED]
    if method != "lda":
        assert np.array_equal(reduce(named_alone, 4), rows[NAMED])  # nothing is learned from what has no name
    for width in (0, GIVEN + 1):
        with pytest.raises(InputError, match=f"width {width} is not to be had .* choose between 1 and"):
            reduce(EMBEDDINGS, width)


def test_a_width_is_bounded_by_items_and_by_classes() -> None:
    few = EMBEDDINGS[:8]  # the first has no name; seven centred rows span six directions
    assert pca(few, 6).shape == (8, 6)
    with pytest.raises(InputError, match=r"PCA: width 7 is not to be had from embeddings of 8 items and width 12"):
        pca(few, 7)
    assert lda(EMBEDDINGS, 4, CLASSES).shape == (ITEMS, 4)
    with pytest.raises(InputError, match=r"LDA with 5 classes: width 5 .* between 1 and 4"):
        lda(EMBEDDINGS, 5, CLASSES)


def test_clusters_are_those_of_rows_that_lie_together() -> None:
    rng = np.random.default_rng(2)
    centres = 10 * np.eye(3, GIVEN)
    rows = (centres[CLASSES % 3] + rng.normal(size=(ITEMS, GIVEN))).astype(np.float32)
    rows[UNNAMED] = 0
    found = clusters(rows, 3, seed=0)
    assert (found[UNNAMED] == 3).all()
    assert {(int(a), int(b)) for a, b in zip(found[NAMED], CLASSES[NAMED] % 3, strict=True)} in [
        set(enumerate(order)) for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
    ]
    assert np.array_equal(found, clusters(rows, 3, seed=0))
    with pytest.raises(InputError, match="clusters: 119 asked for of 118 items with a name"):
        clusters(rows, 119, seed=0)


def test_unit_length_leaves_directions() -> None:
    rows = np.array([[3, 4], [0, 0], [-5, 0]], np.float32)
    np.testing.assert_allclose(unit_length(rows), np.array([[0.6, 0.8], [0, 0], [-1, 0]]), rtol=1e-6)


def test_permuted_rows_are_the_same_rows_of_other_items() -> None:
    control = permuted(EMBEDDINGS, seed=3)
    assert np.array_equal(np.sort(control, axis=0), np.sort(EMBEDDINGS, axis=0))
    assert sorted(map(bytes, control)) == sorted(map(bytes, EMBEDDINGS))  # whole rows
    assert (control != EMBEDDINGS).any(axis=1).mean() > 0.9
    assert np.array_equal(control, permuted(EMBEDDINGS, seed=3))
    assert not np.array_equal(control, permuted(EMBEDDINGS, seed=4))
