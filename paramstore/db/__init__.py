"""The SQL leg: one database file, its schema, and every statement that is run against it.

Knows rows and bytes only; must never import torch, nor anything of the package that does.
"""
