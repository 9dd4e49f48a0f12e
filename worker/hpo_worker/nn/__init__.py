"""Multi-layer perceptrons in NumPy, and nothing else: this package imports numpy only.

Axes: K networks of one shape side by side, B images of a mini-batch (or rows evaluated), I inputs, O outputs,
C classes, N images that a first layer knows. A network alone is a group of one. No sum goes over K and no product
grows with it, so that each of K networks gets the bits that it would get alone.
Every array is of one type, float32, or float64 for checks. Layers keep their buffers, so what `forward`, `evaluate`
and `backward` return is valid until the layer is called again.
"""
