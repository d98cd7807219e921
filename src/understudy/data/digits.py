"""scikit-learn's digits: real data that every installation has."""

import numpy as np

from understudy import randomness
from understudy.data.source import Samples, Source, resident

_TEST = 397
_VALIDATION = 200


def digits() -> Source:
    """Read the 1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak, 1998), as 1,200 / 200 / 397.

    The split is drawn once and for all from a fixed key, so that figures can be compared.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    labels = bunch.target  # pyright: ignore[reportAttributeAccessIssue]
    order = randomness.permutation(randomness.key("digits", "split"), len(images))

    def part(ids: np.ndarray) -> Samples:
        return resident(images[ids], labels[ids], where="scikit-learn's digits", classes=10)

    return Source(
        name="digits",
        classes=tuple("0123456789"),
        test=part(order[:_TEST]),
        validation=part(order[_TEST : _TEST + _VALIDATION]),
        train=part(order[_TEST + _VALIDATION :]),
    )
