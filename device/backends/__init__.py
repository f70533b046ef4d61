"""Shipping backends, unmodified, behind the same door as all other implementations: one package each.

``boot.py`` imports the backend beside the device, ``world.py`` builds the backend's own objects as it builds them
itself, and a module per component, named as in the other rooms, calls its functions.
"""
