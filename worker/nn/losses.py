"""Softmax and cross-entropy: the last layer's scores (B, C) against the labels (B,)."""

from __future__ import annotations

import numpy as np

from worker.nn.arrays import Array, Labels


def softmax(scores: Array) -> Array:
    """exp(s) / Σ exp(s) of each row, (B, C); shifted by the largest score, which changes nothing but overflows."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def cross_entropy(scores: Array, labels: Labels) -> float:
    """The mean of −log softmax(s)[label], as log Σ exp(s) − s[label], which has no log of 0."""
    largest = scores.max(axis=1)
    log_sums = np.log(np.exp(scores - largest[:, None]).sum(axis=1)) + largest
    return float((log_sums - scores[np.arange(len(labels)), labels]).mean(dtype=np.float64))


def cross_entropy_gradient(scores: Array, labels: Labels) -> Array:
    """d(mean cross-entropy)/d(scores) = (softmax(s) − one-hot(label)) / B, (B, C)."""
    gradient = softmax(scores)
    gradient[np.arange(len(labels)), labels] -= 1
    gradient /= len(labels)
    return gradient


def accuracy(scores: Array, labels: Labels) -> float:
    """The share of rows whose largest score is the label's."""
    return float(np.count_nonzero(scores.argmax(axis=1) == labels) / len(labels))
