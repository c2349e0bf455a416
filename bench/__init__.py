"""The benchmark of the package: its layers beside every peer, verified, then timed.

``python -m bench`` from a checkout, ``seqkernels-bench`` once installed with the extra ``bench``.
Imports within are relative: the installed package is called ``seqkernels_bench``.
"""
