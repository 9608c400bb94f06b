"""The least time that a GPU could take, by what its maker says of it (`attrib.core.rates`)."""

from attrib.core.rates import RATES
from bench.engine.ours import Dtype


def floor_seconds(name: str, dtype: Dtype, flops: float, size: float) -> float | None:
    """The least time for so many operations and bytes, whichever takes longer; None for a GPU that is not in the table."""
    rates = RATES.get(name)
    return None if rates is None else max(flops / rates.of(dtype), size / rates.bytes)
