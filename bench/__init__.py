"""The benchmarks: ``python -m bench`` measures the store beside its peers and writes the table.

Never imported by the package.
"""
