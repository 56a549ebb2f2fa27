"""Tools at one point: derivatives, structure, spectrum, inertia, and bounds on the distance to the minimum.

`ufm.landscape` exports them under their public names.
"""
