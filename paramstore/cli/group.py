"""The verbs, in the order in which help lists them; each is imported when it is used.

A table and what makes commands of it; must never import the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import click

DEBUG: Final = "--debug"
DATABASE: Final = f"{__name__}.database"
"""Key of the context's meta: what ``--db`` said."""

# Section: verb: module of this package, what it does.
SECTIONS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Look": {
        "log": ("log", "Snapshots, newest first."),
        "show": ("show", "One snapshot: its parameters, extras and states."),
        "history": ("history", "The versions of parameters, by name."),
        "diff": ("compare", "What differs between two snapshots, and by how much."),
        "best": ("snapshots", "The snapshot with the largest or smallest metric."),
        "scopes": ("snapshots", "The scopes and how far they have come."),
    },
    "Name": {
        "tag": ("tags", "Name a snapshot."),
        "untag": ("tags", "Forget the name of a snapshot."),
    },
    "Move": {
        "export": ("moving", "Write a snapshot, or one parameter, to a file."),
        "import": ("moving", "Make a snapshot of the parameters in a file."),
        "copy": ("lines", "Copy a scope, also into another store."),
        "rename": ("lines", "Give a scope or a parameter another name."),
        "drop": ("lines", "Forget a scope."),
    },
    "Keep": {
        "expire": ("keeping", "Forget snapshots by a policy."),
        "gc": ("keeping", "Free what no snapshot holds."),
        "du": ("keeping", "What the store takes on the disk."),
        "verify": ("checking", "Check every row, digest and tensor."),
        "backup": ("checking", "Copy the store while it is in use."),
        "salvage": ("checking", "Save what is readable in a damaged store."),
        "doctor": ("doctor", "What is wrong with a store or its place, and what to do."),
        "db": ("schema", "The schema of a store: current, check, upgrade, downgrade."),
    },
    "Learn": {
        "demo": ("demo", "A training run that is killed, continued, and asked what happened."),
        "completion": ("completion", "What lets TAB complete verbs, scopes, tags and parameters."),
    },
}
VERBS: Final = {verb: place for section in SECTIONS.values() for verb, place in section.items()}


class Verb(click.Command):
    """A command whose help ends with examples, and that takes ``--db`` and ``--debug``."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)
        """Command lines for its help, the comment of each behind two spaces and ``#``."""
        self.params.extend(common_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; of two forms of output, click would take the last."""
        if {"--json", "--jsonl"} <= set(args):
            ctx.fail("--json goes without --jsonl")
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {example}\n")


class Verbs(click.Group):
    """A group that knows its verbs by name, and imports the module of one that is asked for."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.extend(common_options())

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the command line, or print the help that it asks for."""
        with _unread_is_no_failure():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        with _unread_is_no_failure():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb; None where there is none of that name."""
        if cmd_name not in VERBS:
            return None
        module = import_module(f"paramstore.cli.{VERBS[cmd_name][0]}")
        found: click.Command = getattr(module, f"{cmd_name}_" if cmd_name == "import" else cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb of a command line, or say which may have been meant."""
        from paramstore.refs import suggest

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"there is no verb {args[0]!r}{suggest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by section, without importing them."""
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(verb, what) for verb, (_, what) in verbs.items()])


@contextmanager
def _unread_is_no_failure() -> Iterator[None]:
    """End the command where nobody reads its output any more; click itself would exit with 1."""
    try:
        yield
    except BrokenPipeError:
        raise click.exceptions.Exit(0) from None


def verb(name: str, *examples: str, **attributes: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Make a verb of a function, whose docstring is its help."""
    if name in VERBS:
        attributes["short_help"] = VERBS[name][1]
    return click.command(name, cls=Verb, examples=examples, **attributes)


def common_options() -> list[click.Option]:
    """Return the options that may stand before and behind a verb."""
    return [
        click.Option(
            ["--db"],
            metavar="FILE",
            expose_value=False,
            callback=_remember_database,
            type=click.Path(),
            help="The store; default: $PARAMSTORE_URL, else paramstore.db in this folder.",
        ),
        click.Option(
            [DEBUG], is_flag=True, expose_value=False, help="Show the traceback of an error."
        ),
    ]


def _remember_database(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> None:
    if value == "":  # an unset variable of a script must not mean another store
        raise click.BadParameter("it is empty; give the path of a store", context, parameter)
    if value is not None:
        context.meta[DATABASE] = value


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A REF names a snapshot: main@12, main@warm (a tag), main@step=1000, main (its newest), "
    "@12 (in the current scope). 'paramstore VERB --help' has examples.",
)
@click.version_option(package_name="paramstore", prog_name="paramstore")
def root() -> None:
    """Look into a store of parameters, and look after it.

    Reads only, unless the verb writes, and is safe beside a run that is training.
    """
