"""Embeddings reduced to a given width, and their permuted control: https://arxiv.org/abs/2402.01339 and its code.

Every function takes rows of float32 and gives rows of float32, the same bits for the same seed. A row of zeros, an
item without a name, says nothing: it takes no part in what is learned and stays zero. Shapes: I items, D width given,
W width asked for.

Every worker comes by this module and few call it: scikit-learn, seconds to import, is imported where it is used.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.errors import InputError

Rows = NDArray[np.float32]
Classes = NDArray[np.int64]


def pca(embeddings_ID: Rows, width: int) -> Rows:
    """The ``width`` directions of most variance; shape (I, D) -> (I, W). It has no seed: the solution is exact.

    Raises:
        InputError: the rows do not spread in so many directions.
    """
    from sklearn.decomposition import PCA  # noqa: PLC0415

    _check("PCA", width, embeddings_ID, min(embeddings_ID.shape[1], int(_known(embeddings_ID).sum()) - 1))
    return _reduced(embeddings_ID, PCA(width, svd_solver="full").fit_transform)


def random_projection(embeddings_ID: Rows, width: int, *, seed: int) -> Rows:
    """Products with a Gaussian matrix, which keeps distances in the mean; shape (I, D) -> (I, W).

    Raises:
        InputError: ``width`` is more than the rows have.
    """
    from sklearn.random_projection import GaussianRandomProjection  # noqa: PLC0415

    _check("random projection", width, embeddings_ID, embeddings_ID.shape[1])
    return _reduced(embeddings_ID, GaussianRandomProjection(width, random_state=seed).fit_transform)


def lda(embeddings_ID: Rows, width: int, classes_I: Classes) -> Rows:
    """Linear discriminant analysis: directions that part ``classes`` best; shape (I, D) -> (I, W). It has no seed.

    The paper's classes are the products' categories. Where a catalogue has none, ``clusters`` stand in for them.

    Raises:
        InputError: there are too few classes for ``width``; the paper's code then silently gives fewer columns.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # noqa: PLC0415

    known_I = _known(embeddings_ID)
    classes = len(np.unique(classes_I[known_I]))
    most = min(embeddings_ID.shape[1], classes - 1)
    _check(f"LDA with {classes} classes", width, embeddings_ID, most)
    model = LinearDiscriminantAnalysis(n_components=width)
    return _reduced(embeddings_ID, lambda rows: model.fit_transform(rows, classes_I[known_I]))


def clusters(embeddings_ID: Rows, count: int, *, seed: int) -> Classes:
    """The k-means cluster of each row, from 0; rows of zeros are in one of their own, ``count``; shape (I,).

    Raises:
        InputError: there are fewer rows than clusters.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415

    known_I = _known(embeddings_ID)
    if not 1 <= count <= known_I.sum():
        raise InputError(f"clusters: {count} asked for of {known_I.sum()} items with a name; choose between 1 and that")
    classes_I = np.full(len(embeddings_ID), count, np.int64)
    classes_I[known_I] = KMeans(count, n_init=1, random_state=seed).fit_predict(embeddings_ID[known_I])
    return classes_I


def autoencoder(embeddings_ID: Rows, width: int, *, seed: int, epochs: int, batch: int = 512) -> Rows:
    """The narrow middle of a network that gives its input back, mean squared error, Adam; shape (I, D) -> (I, W).

    As in the paper's code its layers halve towards the middle, are mirrored behind it and have no activation, so that
    it comes to span what PCA spans. The code's own ``epochs`` are 3: of MiniLM's vectors of Beauty's names, width 64
    then misses .43 of the variance, after 30 epochs .33, which is what PCA misses.

    Raises:
        InputError: ``width`` is more than the rows have.
    """
    _check("autoencoder", width, embeddings_ID, embeddings_ID.shape[1])
    return _reduced(embeddings_ID, lambda rows: _middle(torch.from_numpy(rows), width, seed, epochs, batch))


def unit_length(embeddings_ID: Rows) -> Rows:
    """Every row divided by its length; rows of zeros stay."""
    from sklearn.preprocessing import normalize  # noqa: PLC0415

    rows: Rows = normalize(embeddings_ID)
    return rows


def permuted(embeddings_ID: Rows, *, seed: int) -> Rows:
    """The control: the same rows, each now some other item's, so that only what they say of the items is lost."""
    return embeddings_ID[np.random.default_rng(seed).permutation(len(embeddings_ID))]


def _known(embeddings_ID: Rows) -> NDArray[np.bool_]:
    return np.asarray(embeddings_ID.any(axis=1), np.bool_)


def _check(method: str, width: int, embeddings_ID: Rows, most: int) -> None:
    if not 1 <= width <= most:
        items, given = embeddings_ID.shape
        raise InputError(
            f"{method}: width {width} is not to be had from embeddings of {items} items and width {given};"
            f" choose between 1 and {most}"
        )


def _reduced(embeddings_ID: Rows, reduce: Callable[[Rows], NDArray[np.floating]]) -> Rows:
    known_I = _known(embeddings_ID)
    learned = np.asarray(reduce(embeddings_ID[known_I]), np.float32)
    rows_IW = np.zeros((len(embeddings_ID), learned.shape[1]), np.float32)
    rows_IW[known_I] = learned
    return rows_IW


def _middle(rows_ID: Tensor, width: int, seed: int, epochs: int, batch: int) -> Rows:
    widths = [width]
    while 2 * widths[-1] <= rows_ID.shape[1]:
        widths.append(2 * widths[-1])
    inwards = [rows_ID.shape[1], *reversed(widths[1:]), width]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _linear_layers(inwards)
        decoder = _linear_layers(inwards[::-1])
        model = nn.Sequential(encoder, decoder)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(epochs):
            for some_B in torch.split(torch.randperm(len(rows_ID)), batch):
                optimizer.zero_grad()
                loss = F.mse_loss(model(rows_ID[some_B]), rows_ID[some_B])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    with torch.inference_mode():
        middle: Rows = encoder(rows_ID).numpy()
    return middle


def _linear_layers(widths: list[int]) -> nn.Sequential:
    """Drawn as Keras draws them, which the paper's code uses."""
    layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
