"""What is fixed about a whole step when it is compiled."""

from typing import NamedTuple

from adamx.base.numerics import Convention

__all__ = ["Plan", "Row"]


class Row(NamedTuple):
    """One leaf: where its moments begin, and whether weight decay applies to it.

    The compiled kernel reads these numbers in this order (`native/arguments.h`).
    """

    mu_buffer: int
    mu_element: int
    nu_buffer: int  # nu_max has the same buffer number and element
    nu_element: int
    decays: bool
    group: int = 0  # elements that share a scale, of moments in 8 bits in own buffers; or 0
    residual_bits: int = 0  # 8 or 16, of a parameter with a residual; or 0


class Plan(NamedTuple):
    """What is computed, and on which leaves."""

    rows: tuple[Row, ...]  # one for each leaf; parts of one buffer in rising order
    mu_buffers: int
    nu_buffers: int
    convention: Convention
    amsgrad: bool
    decoupled: bool  # weight decay shrinks the parameter, or else is added to the gradient
    clip: bool  # by the global norm of the gradients
    nesterov: bool
    rounds_nu_at_random: bool

    def operand_counts(self) -> list[int]:
        """How many arrays there are of each kind, in this order.

        They are mu, nu, nu_max, the scales of mu and of nu where these are in 8 bits, residuals of
        the parameters that have one, gradients and parameters.
        """
        leaves, coded = len(self.rows), sum(row.group > 0 for row in self.rows)
        residuals = sum(row.residual_bits > 0 for row in self.rows)
        return [
            self.mu_buffers,
            self.nu_buffers,
            self.nu_buffers if self.amsgrad else 0,
            coded,
            coded,
            residuals,
            leaves,
            leaves,
        ]
