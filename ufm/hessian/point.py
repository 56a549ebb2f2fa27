"""One point, analysed: whatever several callers want to know about it is computed once."""

from __future__ import annotations

import functools

from ufm._problem import Problem, Variables
from ufm.hessian import inertia, product, spectrum
from ufm.hessian.certificate import Certificate, certificate
from ufm.hessian.inertia import Inertia
from ufm.hessian.product import NotFinite
from ufm.hessian.spectrum import Lowest
from ufm.hessian.structure import Structure, structure


class Analysis:
    """The derivatives of f at a point of a problem; each is computed when it is first asked for.

    Attributes:
        prob, params: the problem and the point, as `Problem.check_params` returns it.
    """

    def __init__(self, prob: Problem, params: Variables) -> None:
        self.prob, self.params = prob, params

    @functools.cached_property
    def structure(self) -> Structure:
        """The exact decomposition of the Hessian.

        Raises:
            NotFinite: the Hessian is not finite here.
        """
        return structure(self.prob, self.params)

    @property
    def finite(self) -> bool:
        """Whether the Hessian is finite here."""
        try:
            return self.structure is not None
        except NotFinite:
            return False

    @functools.cached_property
    def _criticality(self) -> tuple[bool, float]:
        return product.is_critical(self.prob, self.params)

    @property
    def critical(self) -> bool:
        """Whether |grad f| is small against the parts that cancel in it."""
        return self._criticality[0]

    @property
    def grad_norm(self) -> float:
        """|grad f|."""
        return self._criticality[1]

    @functools.cached_property
    def inertia(self) -> Inertia:
        """The signature of the Hessian, at the default tolerance."""
        if not self.prob.decomposes:
            return inertia.inertia(self.prob, self.params)
        return inertia.count(self.structure, self.grad_norm if self.critical else None)

    @functools.cached_property
    def smallest(self) -> float:
        """The smallest eigenvalue of the Hessian."""
        if not self.prob.decomposes:
            return float(spectrum.eigenvalues(self.prob, self.params, 1).values[0])
        return float(spectrum.of_structure(self.structure, self.params, 1, "smallest").values[0])

    @functools.cached_property
    def lowest(self) -> Lowest:
        """The smallest eigenvalue with a unit eigenvector, and the part of the space in which it lives."""
        if not self.prob.decomposes:
            return spectrum.lowest_without_structure(self.prob, self.params)
        return spectrum.lowest_pair(self.structure, self.params, self.critical)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """The bound on f - f*."""
        return certificate(self.prob, self.params)
