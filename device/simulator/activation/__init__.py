"""Gated activations, alone and followed by quantisation.

``gates`` has the arithmetic, and one module per operator says what it refuses and where it rounds. Rounding to
integers and the checks that operators share are those of ``device.simulator.quantisation``.
"""
