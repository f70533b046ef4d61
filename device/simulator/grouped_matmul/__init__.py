"""Grouped matrix products: rows of several experts, each by its own weight, in one call.

``grouped_matmul`` is the operator in both overloads, with ``request`` (its arguments, and which outputs there are),
``checks`` (what is refused) and ``scenarios`` (what is computed for which dtypes). ``swiglu_quant`` and
``finalize_routing`` are products with what production does after them. ``groups`` reads group lists, ``products`` has
the sums, ``int4`` the packed weights and their scales.
"""
