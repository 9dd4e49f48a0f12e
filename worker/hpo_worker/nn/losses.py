"""Softmax and cross-entropy: the last layer's scores (K, B, C) against the labels (B,)."""

from __future__ import annotations

import numpy as np

from hpo_worker.nn.arrays import Array, Labels


def softmax(scores: Array) -> Array:
    """exp(s) / Σ exp(s) of each row, (K, B, C); shifted by the largest score, which changes nothing but overflows."""
    exponentials = scores.swapaxes(1, 2).copy()  # (K, C, B): sums over the classes are faster along the memory
    exponentials -= exponentials.max(axis=1, keepdims=True)
    np.exp(exponentials, out=exponentials)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials.swapaxes(1, 2)


def cross_entropy(scores: Array, labels: Labels) -> Array:
    """−log softmax(s)[label] of each row, (K, B), as log Σ exp(s) − s[label], which has no log of 0.

    Differences of scores are taken in double precision, so that the result is finite wherever the scores are.
    """
    shifted = scores.swapaxes(1, 2).copy()  # (K, C, B)
    largest = shifted.max(axis=1, keepdims=True)
    of_labels = shifted[:, labels, np.arange(len(labels))].astype(np.float64) - largest[:, 0]
    shifted -= largest
    losses: Array = np.log(np.exp(shifted, out=shifted).sum(axis=1), dtype=np.float64) - of_labels
    return losses


def cross_entropy_gradient(scores: Array, labels: Labels, weights: Array) -> Array:
    """d(Σ weight · cross-entropy)/d(scores) = weight · (softmax(s) − one-hot(label)), (K, B, C); weights (K, B, 1)."""
    gradient = softmax(scores)
    gradient[:, np.arange(len(labels)), labels] -= 1
    gradient *= weights
    return gradient


def hits(scores: Array, labels: Labels) -> Labels:
    """How many rows of each network have their largest score at the label, (K,)."""
    counts: Labels = np.count_nonzero(scores.argmax(axis=2) == labels, axis=1)
    return counts


def accuracy(scores: Array, labels: Labels) -> float:
    """The share of rows of one network, (B, C), whose largest score is the label's."""
    return float(hits(scores[np.newaxis], labels)[0] / len(labels))
