"""Multi-layer perceptrons in NumPy, and nothing else: a room that imports numpy only.

Axes: B images of a mini-batch (or rows evaluated), I inputs, O outputs, C classes, N images that a first layer knows.
Every array is of one type, float32, or float64 for checks. Layers keep their buffers, so what `forward`, `evaluate`
and `backward` return is valid until the layer is called again.
"""
