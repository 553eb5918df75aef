"""What connects a store to other libraries, one module each, imported on demand.

Must never import any of them itself.
"""
