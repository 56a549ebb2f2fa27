"""Proofs in ball arithmetic: existence of a critical point, negative curvature, and objectives in order."""

from ufm.rigour.proofs import Proof, prove_below, prove_critical_point, prove_negative_curvature

__all__ = ["Proof", "prove_below", "prove_critical_point", "prove_negative_curvature"]
