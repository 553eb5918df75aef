"""The ``paramstore`` command: the same store from a shell, read-only unless the verb writes.

Says what the library knows; must never import torch where SQL is enough.
"""
