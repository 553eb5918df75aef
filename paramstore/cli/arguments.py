"""Arguments that several verbs take, checked before a store is opened, and completed by TAB.

Completion asks the store, quickly and silently; must never print or raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from paramstore.cli.opening import MAIN, current_scope, reading
from paramstore.errors import InvalidInputError
from paramstore.refs import Ref, parse_ref

if TYPE_CHECKING:
    from paramstore.db.repository import Repository

F = TypeVar("F", bound=Callable[..., Any])
_PATIENCE = 0.5  # seconds to wait for a writer
_MOST = 500  # a shell that is given more asks whether to show them

dry_run_option = click.option("--dry-run", is_flag=True, help="Only tell what would be done.")


class RefType(click.ParamType[Ref]):
    """A reference to a snapshot."""

    name = "ref"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Ref:
        """Parse it."""
        if isinstance(value, Ref):
            return value
        try:
            return parse_ref(int(value) if str(value).isascii() and value.isdigit() else value)
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer scopes, and behind ``@`` the tags of one."""
        return _offered(ctx, lambda repository: _references(repository, incomplete), incomplete)


class ScopeType(click.ParamType[str]):
    """The name of a scope."""

    name = "scope"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take it as it is; the store knows which exist."""
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the scopes of the store."""
        return _offered(ctx, lambda repository: (s.name for s in repository.scopes()), incomplete)


def complete_params(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the names of the parameters of the scope that the command line names."""

    def names(repository: Repository) -> Iterable[str]:
        from paramstore.db.looking import param_names

        scope = current_scope(repository, ctx.params.get("scope"))
        return param_names(repository.database, scope)

    return _offered(ctx, names, incomplete)


def complete_tags(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the tags of the scope that the command line names."""

    def names(repository: Repository) -> Iterable[str]:
        from paramstore.db.looking import tag_names

        return tag_names(repository.database, current_scope(repository, ctx.params.get("scope")))

    return _offered(ctx, names, incomplete)


def _offered(
    ctx: click.Context, find: Callable[[Repository], Iterable[str]], incomplete: str
) -> list[CompletionItem]:
    try:
        with ctx.scope(cleanup=False), reading(timeout=_PATIENCE) as repository:
            found = [name for name in find(repository) if name.startswith(incomplete)]
    except Exception:  # noqa: BLE001  # in the middle of a line that somebody is typing
        return []
    return [CompletionItem(name) for name in found[:_MOST] if name.isprintable()]


def _references(repository: Repository, incomplete: str) -> list[str]:
    from paramstore.db.looking import tag_names

    scopes = [scope.name for scope in repository.scopes()]
    if "@" not in incomplete:
        return [form for scope in scopes for form in (scope, f"{scope}@")]
    scope = incomplete.partition("@")[0]
    inside = scope or (MAIN if MAIN in scopes else scopes[0])
    return [f"{scope}@{point}" for point in ("latest", *tag_names(repository.database, inside))]


def scope_option(what: str = "The scope; default: main, or the only one.") -> Callable[[F], F]:
    """Give a verb ``--scope``."""
    return click.option("-s", "--scope", type=ScopeType(), help=what)


def ref_argument(name: str, *, required: bool = True) -> Callable[[F], F]:
    """Give a verb an argument that names a snapshot."""
    metavar = "REF" if required else "[REF]"
    return click.argument(name, metavar=metavar, type=RefType(), required=required)


def limit_option(what: str) -> Callable[[F], F]:
    """Give a verb ``--limit``."""
    return click.option("-n", "--limit", metavar="N", type=click.IntRange(0), help=what)
