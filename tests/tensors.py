"""What torch's tensors look like, where it is not installed; see `tests/live/test_torch.py`."""


class Tensor:
    """One that requires a gradient: NumPy cannot read it, and does not know its dtype."""

    __module__ = "torch"

    dtype, shape = "torch.float32", ()

    def __array__(self, dtype=None, copy=None):
        """What torch says."""
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def __float__(self):
        """Its only number."""
        return 0.1

    def detach(self):
        """Only looked for."""


class Parameter(Tensor):
    __module__ = "torch.nn.parameter"
