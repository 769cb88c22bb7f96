"""Linear systems solved in a fixed number of steps with fixed coefficients.

Conjugate gradients take their step lengths from sums over the whole image, so that each pixel
depends on all others and on where tiles end. Chebyshev's semi-iteration takes them from a bound on
the spectrum: after n steps a value depends on what n products reach, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def solved(step: Callable[[Tensor], Tensor], start: Tensor, radius: float, steps: int) -> Tensor:
    """The fixed point of ``x = step(x)``, nearly.

    Parameters
    ----------
    step
        An affine map whose linear part is similar to a symmetric matrix with eigenvalues within
        ``radius`` of 0.
    start
        Where the iteration begins.
    radius
        Below 1; the error falls by about ``exp(-sqrt(2 (1 - radius)))`` a step.
    steps
        Calls of ``step``.
    """
    if steps == 0:
        return start
    before, x, omega = start, step(start), 2.0
    for _ in range(steps - 1):
        omega = 1 / (1 - omega * radius**2 / 4)
        before, x = x, (step(x) - before).mul_(omega).add_(before)
    return x
