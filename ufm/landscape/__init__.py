"""The landscape of equation (7): certificates of global optimality."""

from ufm.landscape.certificates import Bounds, Certificate, bounds, certificate

__all__ = ["Bounds", "Certificate", "bounds", "certificate"]
