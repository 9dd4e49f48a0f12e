"""Softmax and cross-entropy: the last layer's scores (B, C) against the labels (B,)."""

from __future__ import annotations

import numpy as np

from worker.nn.arrays import Array, Labels


def softmax(scores: Array) -> Array:
    """exp(s) / Σ exp(s) of each row, (B, C); shifted by the largest score, which changes nothing but overflows."""
    exponentials = scores.T.copy()  # (C, B): sums over the classes are faster along the memory
    exponentials -= exponentials.max(axis=0)
    np.exp(exponentials, out=exponentials)
    exponentials /= exponentials.sum(axis=0)
    return exponentials.T


def cross_entropy(scores: Array, labels: Labels) -> float:
    """The mean of −log softmax(s)[label], as log Σ exp(s) − s[label], which has no log of 0.

    In double precision, so that it is finite wherever the scores are.
    """
    shifted = scores.T.astype(np.float64)
    shifted -= shifted.max(axis=0)
    of_labels = shifted[labels, np.arange(len(labels))]
    return float((np.log(np.exp(shifted).sum(axis=0)) - of_labels).mean())


def cross_entropy_gradient(scores: Array, labels: Labels) -> Array:
    """d(mean cross-entropy)/d(scores) = (softmax(s) − one-hot(label)) / B, (B, C)."""
    gradient = softmax(scores)
    gradient[np.arange(len(labels)), labels] -= 1
    gradient /= len(labels)
    return gradient


def accuracy(scores: Array, labels: Labels) -> float:
    """The share of rows whose largest score is the label's."""
    return float(np.count_nonzero(scores.argmax(axis=1) == labels) / len(labels))
