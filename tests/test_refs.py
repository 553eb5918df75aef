"""References and names: what parses, what is refused, and that nothing hostile gets through."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from paramstore.errors import InvalidNameError, InvalidReferenceError, ParamStoreError
from paramstore.refs import (
    Ref,
    check_param_name,
    check_scope_name,
    check_tag_name,
    parse_ref,
    suggest,
)
from paramstore.snapshot import Snapshot

SNAPSHOT = Snapshot(
    id=7,
    scope="guide a",
    version=3,
    parent=None,
    step=None,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    message=None,
    kind="commit",
)

# Names that somebody's script, shell, terminal or SQL might trip over, and that are fine.
ODD_BUT_LEGAL = [
    "a",
    "x" * 200,
    "with space",
    "dots.and/slashes\\and:colons",
    "'; DROP TABLE snapshots; --",
    '"quoted"',
    "%s{}$(rm)`id`",
    "naïve-名前-🙂",
    "--flag",
    "..",
    "e\u0301 decomposed",
    "right\u202eto-left",
]
HOSTILE = [
    "",
    "x" * 201,
    " outer",
    "outer ",
    "\u2003outer",
    "a@b",
    "nul\0",
    "tab\t",
    "line\nbreak",
    "\x1b[31mred",
    "c1\x9b31m",
    "\x7f",
    "lone\ud800",
]
NOT_TEXT: list[Any] = [None, 1, b"main", ["main"], object()]


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("main", Ref(scope="main")),
        ("main@latest", Ref(scope="main")),
        ("@latest", Ref()),
        ("main@12", Ref(scope="main", version=12)),
        ("@12", Ref(version=12)),
        ("@0012", Ref(version=12)),
        ("main@warm", Ref(scope="main", tag="warm")),
        ("@warm", Ref(tag="warm")),
        ("main@step=1000", Ref(scope="main", step=1000)),
        ("@step=-3", Ref(step=-3)),
        ("@step=+3", Ref(step=3)),
        ("12", Ref(scope="12")),
        ("a b@a b", Ref(scope="a b", tag="a b")),
        ("@steps", Ref(tag="steps")),
    ],
)
def test_text_means(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref


def test_a_number_is_a_version_of_the_current_scope() -> None:
    assert parse_ref(12) == Ref(version=12)


def test_a_snapshot_refers_to_itself() -> None:
    assert parse_ref(SNAPSHOT) == Ref(scope="guide a", version=3) == parse_ref(SNAPSHOT.ref)


@pytest.mark.parametrize(
    "reference",
    [
        *("", "@", "main@", "main@a@b", "@@", "main@0", "@00", "main@ 1", "main@1 "),
        *("main@step=", "main@step=x", "main@step=1.5", "main@step= 1", "main@step=1=2"),
        *("main@９", "main@²", "main@" + "9" * 20, "main@step=" + "9" * 19),
        *(0, -1, 2**63, True, 1.0, None, b"main@1", ("main", 1)),
        *(f"{name}@1" for name in HOSTILE if name and "@" not in name),
        *(f"main@{name}" for name in HOSTILE),
    ],
)
def test_a_malformed_reference_is_refused_as_one(reference: Any) -> None:
    with pytest.raises(InvalidReferenceError):
        parse_ref(reference)


def test_the_error_of_a_reference_shows_it_and_what_to_write() -> None:
    with pytest.raises(InvalidReferenceError, match=r"'main@a=b'.*scope@step=1000"):
        parse_ref("main@a=b")


NAMES = st.text(min_size=1, max_size=200)
REFS = st.builds(Ref, scope=st.none() | NAMES, version=st.integers(1, 2**63 - 1)) | st.builds(
    Ref, scope=st.none() | NAMES, step=st.integers(-(2**63), 2**63 - 1)
)
REFS |= st.builds(Ref, scope=st.none() | NAMES, tag=st.none() | NAMES)


def legal(ref: Ref) -> bool:
    try:
        if ref.scope is not None:
            check_scope_name(ref.scope)
        if ref.tag is not None:
            check_tag_name(ref.tag)
    except InvalidNameError:
        return False
    return True


@given(REFS)
def test_a_reference_that_was_written_is_read_back(ref: Ref) -> None:
    assume(legal(ref))
    assert parse_ref(str(ref)) == ref


@given(st.text() | st.from_regex(r"\w*@(step=)?\w*", fullmatch=True))
def test_any_text_is_a_reference_that_comes_back_or_an_error_of_ours(text: str) -> None:
    try:
        ref = parse_ref(text)
    except InvalidReferenceError:
        return
    assert legal(ref)
    assert parse_ref(str(ref)) == ref


@given(st.integers() | st.floats() | st.binary() | st.booleans() | st.none())
def test_anything_else_is_a_version_or_an_error_of_ours(value: Any) -> None:
    try:
        assert parse_ref(value) == Ref(version=value)
    except ParamStoreError as error:
        assert isinstance(error, ValueError)  # noqa: PT017 - most values do not raise


@pytest.mark.parametrize("name", ODD_BUT_LEGAL)
def test_odd_names_are_legal(name: str) -> None:
    assert check_scope_name(name) == check_tag_name(name) == check_param_name(name) == name
    assert parse_ref(f"{name}@{name}") == Ref(scope=name, tag=name)


@pytest.mark.parametrize("name", [*HOSTILE, *NOT_TEXT])
@pytest.mark.parametrize("check", [check_scope_name, check_tag_name])
def test_hostile_scope_and_tag_names_are_refused(check: Any, name: Any) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["latest", "12", "0", "²", "a=b", "step=3", "="])
def test_a_tag_cannot_look_like_another_kind_of_reference(name: str) -> None:
    assert check_scope_name(name) == name
    with pytest.raises(InvalidNameError, match="cannot be a tag"):
        check_tag_name(name)


@pytest.mark.parametrize("name", ["net$$$0.weight", "a@b", " ", "x" * 5000, "line\nbreak", "\x1b["])
def test_parameter_names_are_nearly_free(name: str) -> None:
    assert check_param_name(name) == name


@pytest.mark.parametrize("name", ["", "nul\0", "\0", "lone\udfff", *NOT_TEXT])
def test_hostile_parameter_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_param_name(name)
    assert str(caught.value).isprintable()


def test_a_suggestion_names_what_is_close() -> None:
    assert suggest("scal", ["scale", "loc"]) == " (did you mean 'scale'?)"
    assert suggest("zzz", ["scale", "loc"]) == suggest("x", []) == ""
