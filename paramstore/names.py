"""Pyro's names for the parameters of a module: ``mymodule$$$layer.weight``.

Puts such names together and takes them apart; must never import anything but the standard library.
Same results as the functions of these names in Pyro's ``pyro/params/param_store.py``.
"""

from __future__ import annotations

_MODULE_NAMESPACE_DIVIDER = "$$$"


def param_with_module_name(pyro_name: str, param_name: str) -> str:
    """Return the store's name of a module's parameter.

    >>> param_with_module_name("net", "layer.weight")
    'net$$$layer.weight'
    """
    return _MODULE_NAMESPACE_DIVIDER.join([pyro_name, param_name])


def module_from_param_with_module_name(param_name: str) -> str:
    """Return the module's name from a parameter's; the whole name for a parameter of no module.

    >>> module_from_param_with_module_name("net$$$layer.weight")
    'net'
    """
    return param_name.split(_MODULE_NAMESPACE_DIVIDER)[0]


def user_param_name(param_name: str) -> str:
    """Return a parameter's name within its module; the whole name for a parameter of no module.

    Of a name with several dividers, Pyro takes what stands between the first two.

    >>> user_param_name("net$$$layer.weight")
    'layer.weight'
    """
    if _MODULE_NAMESPACE_DIVIDER in param_name:
        return param_name.split(_MODULE_NAMESPACE_DIVIDER)[1]
    return param_name


def normalize_param_name(name: str) -> str:
    """Return the name with its dividers written as dots.

    >>> normalize_param_name("net$$$layer.weight")
    'net.layer.weight'
    """
    return name.replace(_MODULE_NAMESPACE_DIVIDER, ".")
