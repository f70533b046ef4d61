"""Numbers of few bits with a scale per block of neighbours.

``small_floats`` rounds to 8 and 4 bits and packs, ``exponents`` are scales that are powers of two in a byte, ``blocks``
cuts an axis; ``choices`` lists what no source settles. One module per operator. A2 and A3 have only
``npu_dynamic_block_quant`` to int8 and ``npu_dtype_cast`` to dtypes of torch. Everything else here is of Ascend 950,
and no chip is asked for unless ``ascend_950_products`` says so.
"""
