"""The store: Pyro's parameter dictionary, whose snapshots live in a database.

The public face; every method is a few lines that name the part that does the work. Never writes
SQL and never imports Pyro.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, Unpack, overload

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore import archive, checking, housekeeping, past, showing, values
from paramstore.autosave import Autosave, Schedule
from paramstore.background import PendingCommit
from paramstore.db.sqlite import Journal
from paramstore.errors import MismatchError, ParamStoreError, UsageError, warn_deprecated
from paramstore.lazy import UNREAD, Params
from paramstore.reader import MapLocation, check_map_location
from paramstore.refs import to_pattern
from paramstore.request import About, AboutLater, OnConflict, OnFull, Request
from paramstore.restore import Names
from paramstore.scope import State
from paramstore.session import Backend, Reference, Session
from paramstore.snapshot import Snapshot
from paramstore.visit import Visit
from paramstore.working_set import Unconstrained, WorkingSet

M = TypeVar("M", bound=nn.Module)
_held = dict.__getitem__


class ParamStoreDict:
    """Pyro's dictionary of constrained parameters, with snapshots in a database.

    Without a path it is Pyro's class: private, empty, in memory; its snapshots live in a private
    database that is made when first needed. For the arguments see :func:`paramstore.open`.

    **Threads**: one thread trains and commits; any thread may read. A lock keeps commits, restores
    and first reads apart. Parameters must not change while another thread commits them.

    **Ownership**: tensors, modules and attached objects are the caller's and are referenced, not
    copied; restoring fills them in place. ``close()`` releases the database and keeps the tensors.

    **Durability**: what ``commit`` returned survives a power cut. Everything since then is in
    memory only; neither ``close()`` nor leaving the ``with`` block commits.
    """

    _params: Params
    _param_to_name: dict[Tensor, str]
    _constraints: dict[str, Constraint]

    def __init__(
        self,
        path_or_url: str | os.PathLike[str] | None = None,
        *,
        scope: str = "main",
        start: Reference | None = None,
        readonly: bool = False,
        create: bool = True,
        map_location: MapLocation = None,
        validate: bool | None = None,
        statistics: bool = True,
        timeout: float = 60,
        journal: Journal | None = None,
    ) -> None:
        check_map_location(map_location)
        self._validate = validate
        self._session = Session.open(
            path_or_url,
            scope=scope,
            start=start,
            readonly=readonly,
            create=create,
            timeout=timeout,
            journal=journal,
            connect=partial(Backend, map_location=map_location, statistics=statistics),
        )
        self._use(self._session.current)

    # ------------------------------------------------------------------ the dictionary

    def clear(self) -> None:
        """Empty the working set; snapshots stay, and ``resume()`` brings the newest back."""
        self._session.clear()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over ``(name, constrained value)`` pairs."""
        return ((name, self[name]) for name in self._params)

    def keys(self) -> KeysView[str]:
        """The parameter names; buffers of modules are not among them."""
        return self._params.keys()

    def values(self) -> Iterator[Tensor]:
        """Iterate over constrained values."""
        return map(self.__getitem__, self._params)

    def __bool__(self) -> bool:
        return bool(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def __contains__(self, name: object) -> bool:
        return name in self._params

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __delitem__(self, name: str) -> None:
        """Remove a parameter from the working set; its history stays.

        Raises:
            ParamNotFoundError: no such parameter.
        """
        with self._session.lock:
            if name not in self._params:
                raise self._session.missing(name)
            self._current.remove(name)

    def __getitem__(self, name: str) -> Tensor:
        """The constrained value of a parameter; ``.unconstrained()`` of it is what is trained.

        Raises:
            ParamNotFoundError: no such parameter.
            CorruptError: it has to be read, and its stored bytes are missing or altered.
        """
        try:
            trained = _held(self._params, name)
        except (KeyError, TypeError):  # a TypeError for a slice: it has no hash
            raise self._session.missing(name) from None
        if trained is UNREAD:
            trained = self._params[name]
        constraint = self._constraints[name]
        cached = self._transforms.get(name)
        if cached is None or cached.constraint is not constraint:
            cached = self._current.transforms_of(name, constraint)
        transform = cached.forward
        if transform is not None:
            value: Tensor = transform(trained)
            value.unconstrained = Unconstrained(trained)  # type: ignore[attr-defined]
            return value
        reference = trained.__dict__.get("unconstrained")
        # After a pickle or a deep copy it is an empty dictionary.
        if type(reference) is not Unconstrained or reference() is not trained:
            trained.unconstrained = Unconstrained(trained)  # type: ignore[attr-defined]
        return trained

    def __setitem__(self, name: str, new_constrained_value: Tensor) -> None:
        """Set the constrained value of a parameter; a new one has no constraint.

        A leaf without constraint is kept as it is. A constraint is declared by `setdefault`.

        Raises:
            InvalidNameError, InvalidValueError: nothing has changed.
        """
        self._set(name, new_constrained_value, self._constraints.get(name, constraints.real))

    def setdefault(
        self,
        name: str,
        init_constrained_value: Tensor | Callable[[], Tensor],
        constraint: Constraint = constraints.real,
    ) -> Tensor:
        """The constrained value of a parameter, which is set first if it does not exist.

        A stored parameter that nobody has read yet adopts an ``nn.Parameter`` of its shape and
        dtype: it is filled with the stored value and trained from then on.

        Args:
            name: Parameter name.
            init_constrained_value: Initial value, or a function that makes it when needed.
            constraint: Constraint of a new parameter.

        Raises:
            InvalidNameError, InvalidValueError: nothing has changed, nor when the function raises.
        """
        if name in self._params:
            held, offered = _held(self._params, name), init_constrained_value
            # The type is asked first: isinstance of a Parameter runs Python code.
            if type(offered) is not Tensor and offered is not held and isinstance(offered, Tensor):
                self._session.offer(name, held, offered)
            return self[name]
        if not isinstance(init_constrained_value, Tensor) and callable(init_constrained_value):
            init_constrained_value = init_constrained_value()
        self._set(name, init_constrained_value, constraint)
        return self[name]

    def get(self, name: str, default: Any = None, constraint: Constraint | None = None) -> Any:
        """``dict.get``; with a constraint it is :meth:`setdefault`."""
        if constraint is not None:
            return self.setdefault(name, default, constraint)
        return self[name] if name in self._params else default

    def named_parameters(self) -> ItemsView[str, Tensor]:
        """The ``(name, unconstrained value)`` pairs: what is trained."""
        return self._pairs if type(self._params) is Params else self._params.items()

    def get_all_param_names(self) -> KeysView[str]:
        """Deprecated, as in Pyro: use :meth:`keys`."""
        warn_deprecated("get_all_param_names", "keys()")
        return self.keys()

    def replace_param(self, param_name: str, new_param: Tensor, old_param: Tensor) -> None:
        """Deprecated, as in Pyro: use ``store[name] = value``.

        Raises:
            MismatchError: ``old_param`` is not the current value.
        """
        warn_deprecated("replace_param", "store[name] = value")
        if self[param_name].unconstrained() is not old_param.unconstrained():  # type: ignore[attr-defined]
            raise MismatchError(f"old_param is not the value of {param_name!r}; read it again")
        self[param_name] = new_param

    def get_param(
        self,
        name: str,
        init_tensor: Tensor | Callable[[], Tensor] | None = None,
        constraint: Constraint = constraints.real,
        event_dim: int | None = None,  # noqa: ARG002 - Pyro passes and ignores it
    ) -> Tensor:
        """:meth:`setdefault` where an initial value is given; ``pyro.param`` calls this.

        Raises:
            ParamNotFoundError: it does not exist and no initial value was given.
        """
        if init_tensor is None:
            return self[name]
        return self.setdefault(name, init_tensor, constraint)

    def match(self, name: str) -> dict[str, Tensor]:
        """The constrained values of the parameters whose name matches a regular expression.

        Raises:
            InvalidInputError: not a regular expression.
        """
        pattern = to_pattern(name)
        return {found: self[found] for found in self._params if pattern.match(found)}

    def param_name(self, p: Tensor) -> str | None:
        """The name of an unconstrained value; None if it is not in the working set."""
        name = self._param_to_name.get(p)
        return self._current.name_of(p) if name is None else name

    def get_state(self) -> dict[str, Any]:
        """The working set as ``{"params": …, "constraints": …}``; tensors are not copied."""
        return {"params": dict(self._params.items()), "constraints": dict(self._constraints)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Merge a state from :meth:`get_state` into the working set.

        Raises:
            InvalidInputError: not such a state; nothing has changed.
        """
        self._session.merge(state)

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Save the parameters to one safetensors file: unconstrained values and constraint specs.

        Raises:
            StorageError: the file cannot be written; what was there before is untouched.
        """
        with self._session.lock:
            archive.save_state(filename, self.get_state())

    def load(self, filename: str | os.PathLike[str], map_location: MapLocation = None) -> None:
        """Merge the parameters of a file written by :meth:`save`, or by stock Pyro's.

        Runs no code from the file.

        Raises:
            UnsupportedFileError: something else; the message names it. Nothing has changed.
        """
        self.set_state(archive.load_state(filename, map_location))

    # ------------------------------------------------------------------ modules and objects

    def module(self, name: str, nn_module: M, *, strict: bool = True, exclude: Names = None) -> M:
        """Bind a module, and return it: its parameters and persistent buffers become the store's.

        Frozen parameters too; all are named ``name$$$path``. Values that the store holds are
        copied into the module's own tensors. What `torch.compile` and the like wrap is bound.

        Args:
            name: What the module is called in the store.
            nn_module: The module.
            strict: Refuse one that has other names than the store.
            exclude: Names or shell patterns (``"net$$$out.*"``) of which the module keeps its own
                values; what it lacks of them is in the store no more.

        Raises:
            MismatchError: shapes, dtypes or, when ``strict``, names differ from what the store
                holds. Nothing has changed.
        """
        self._session.bind(name, nn_module, exclude, strict=strict)
        return nn_module

    def attach(self, *, rng: bool | None = None, **objects: object) -> None:
        """Let every commit store the state of live objects, and resume and restore put it back.

        Args:
            rng: Whether that of the random generators (Python, NumPy, torch, CUDA) is among it.
            **objects: Anything with ``state_dict`` and ``load_state_dict``, or that some
                integration knows.

        Raises:
            InvalidInputError: an object without a state, or ``rng`` is an object.
        """
        self._session.attach(objects, rng=rng)

    # ------------------------------------------------------------------ commit

    @overload
    def commit(self, *, wait: Literal[True] = True, **about: Unpack[About]) -> Snapshot: ...
    @overload
    def commit(self, *, wait: Literal[False], **about: Unpack[AboutLater]) -> PendingCommit: ...
    @overload
    def commit(self, *, wait: bool, **about: Unpack[AboutLater]) -> Snapshot | PendingCommit: ...
    def commit(
        self,
        *,
        step: int | None = None,
        message: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Iterable[str] | None = None,
        extras: Mapping[str, object] | None = None,
        on_conflict: OnConflict = "raise",
        wait: bool = True,
        max_pending: int = 2,
        on_full: OnFull = "block",
    ) -> Snapshot | PendingCommit:
        """Write a snapshot of the working set, its modules and attached objects.

        When it returns, the snapshot survives a power cut. Only what changed is written. With
        ``wait=False`` it returns as soon as what changed is copied: the snapshot is of this moment,
        and durable when the handle's ``result()`` has returned.

        Args:
            step: Training step.
            message: Text for people.
            metrics: Named numbers.
            tags: Names for this snapshot; a tag that points elsewhere moves here.
            extras: Plain values by name: numbers, text, containers, tensors, arrays.
            on_conflict: ``"append"`` commits although another writer moved the scope's head.
            wait: Whether to return only when the snapshot is durable.
            max_pending: How many commits with ``wait=False`` may be under way, each with copies.
            on_full: ``"block"`` waits for the oldest of them, ``"raise"`` refuses to begin.

        Raises:
            ConflictError: another writer committed to the scope.
            InvalidInputError: the message says what cannot be stored.
            UsageError: it cannot commit (now): closed, read-only, in a plain state.
            DatabaseError: the database could not be written; try again.
            ParamStoreError: what an earlier commit with ``wait=False`` failed with.
        """
        request = Request.checked(step, message, metrics, tags, extras, on_conflict)
        if wait:
            return self._session.commit(request)
        return self._session.commit_later(request, max_pending=max_pending, on_full=on_full)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every commit with ``wait=False`` is durable.

        Raises:
            TimeoutError: one is still being written after ``timeout`` seconds.
            ParamStoreError: one failed, and nobody has been told yet.
        """
        self._session.settle(timeout)

    def autosave(
        self,
        *,
        every: int | None = None,
        seconds: float | None = 600,
        on_exception: bool = True,
        on_conflict: OnConflict = "raise",
        signals: Iterable[signal.Signals] = (signal.SIGTERM,),
    ) -> Autosave:
        """Commit in the background while the block trains, and once more at its end.

        ``with store.autosave(every=500) as auto:``, and ``auto.step(step, elbo=loss)`` at the end
        of each step: that is where commits are made.

        Args:
            every: Steps between two commits; None: by time only.
            seconds: Seconds between two commits; whichever comes first.
            on_exception: Whether an exception commits too; ``resume``, ``latest`` and ``best`` do
                not choose that snapshot, which may be of half a step.
            on_conflict: As for `commit`.
            signals: What ends the run on this machine: the next step commits, and then the signal
                does what it would have done. A second one does so at once.

        Raises:
            InvalidInputError: not a positive number, or neither steps nor seconds.
        """
        when = Schedule(every, seconds)
        return Autosave(
            self._session, when, signals, on_exception=on_exception, on_conflict=on_conflict
        )

    def changed(self) -> tuple[str, ...]:
        """The names that differ from the snapshot this working set continues; writes nothing."""
        return tuple(self._session.changed())

    # ------------------------------------------------------------------ looking back

    @property
    def last(self) -> Snapshot | None:
        """The newest snapshot of the current scope that this store has seen."""
        return self._current.head

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot of the current scope in the database now, interrupted ones apart."""
        return past.latest(self)

    best = past.best
    log = past.log
    history = past.history
    at = past.at
    diff = past.diff
    scopes = past.scopes
    tag = past.tag
    untag = past.untag
    plot = showing.plot

    # ------------------------------------------------------------------ housekeeping

    expire = housekeeping.expire
    gc = housekeeping.gc
    du = housekeeping.du
    verify = checking.verify
    backup = checking.backup

    # ------------------------------------------------------------------ going back, and elsewhere

    def restore(
        self,
        reference: Reference,
        *,
        include: Names = None,
        exclude: Names = None,
        strict: bool = True,
        verify: bool = True,
    ) -> Snapshot:
        """Bring the working set, its modules and attached objects back to a snapshot.

        Tensors of the same shape, dtype and constraint are filled in place and lose their
        gradient; others are replaced; names that the snapshot lacks are removed. A filter keeps it
        to the parameters that pass. The next commit is a new version, this snapshot its parent.

        Args:
            reference: The snapshot; of any scope.
            include: Names or shell patterns (``"net$$$*"``) to restore; default: all.
            exclude: Names or patterns to leave alone.
            strict: Refuse a snapshot that lacks a tensor of a bound module, or the state of
                something attached. A state that nothing is attached for is left alone.
            verify: Compare every stored byte with its digest before anything is changed.

        Raises:
            NotFoundError, InvalidReferenceError: no such snapshot.
            MismatchError: it does not fit what is bound or attached; nothing has been changed.
            CorruptError: stored bytes are missing or altered; nothing has been changed, unless it
                is a RestoreInterruptedError: they vanished while live tensors were being filled.
        """
        return self._session.restore(reference, include, exclude, strict=strict, verify=verify)

    def resume(
        self,
        *,
        include: Names = None,
        exclude: Names = None,
        strict: bool = True,
        interrupted: bool = False,
    ) -> Snapshot | None:
        """Bring everything to the newest snapshot of the current scope; generators last.

        Args:
            include: Names or shell patterns (``"net$$$*"``) to bring back; default: all.
            exclude: Names or patterns to leave alone; optimisers begin anew with these.
            strict: Whether the snapshot has to have every tensor of the bound modules, the state
                of what is attached for the same parameters, and no other.
            interrupted: Whether it may be one that an exception left behind.

        Returns:
            That snapshot; None, and nothing done, where there is none.

        Raises:
            ParamNotFoundError: nothing matches one of ``include``.
            MismatchError: it does not fit what is bound or attached; nothing has been changed.
            CorruptError: stored bytes are missing or altered; nothing has been changed.
        """
        return self._session.resume(include, exclude, strict=strict, interrupted=interrupted)

    def fork(self, name: str) -> None:
        """Let this working set continue in a new scope; its first commit there keeps the parent.

        Raises:
            ScopeError: the scope exists.
        """
        self._session.fork(name)

    def rename(self, old: str, new: str) -> None:
        """Give a parameter of the current scope another name, its history included.

        Raises:
            ParamNotFoundError: no such parameter.
            InvalidNameError: ``new`` is taken, or no name.
            UsageError: the parameter belongs to a bound module, which would name it back.
        """
        self._session.rename(old, new)

    def scope(self, state: State = None, *, commit: bool = True) -> Visit:
        """Enter another scope and yield its state; on leaving, the outer one is back, unchanged.

        Args:
            state: A name: that scope, its latest snapshot the first time, the same tensors later.
                None: a scope that names itself; in memory on a store without a database. What was
                yielded: the same scope again. A plain state: in memory, as in Pyro.
            commit: Whether leaving commits what changed; an exception never does.

        Raises:
            ScopeError: the scope is active, or another thread is inside one.
            InvalidInputError: not a state, or one that cannot be written to.
        """
        return Visit(self._session, state, self._use, commit=commit)

    def load_all(self) -> None:
        """Read every parameter that has not been read yet."""
        self._current.params.load()

    def close(self) -> None:
        """Finish pending commits and release the database; does not commit, and keeps the tensors.

        Raises:
            ParamStoreError: a commit failed in the background, and nobody has been told yet.
        """
        self._session.close()

    def __enter__(self) -> ParamStoreDict:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except ParamStoreError:
            if kind is None:  # else it must not hide what ended the block; it has been logged
                raise

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse ``pickle``, ``torch.save`` and ``copy``: they would give one session two faces."""
        raise UsageError(
            "a store is a session on its database and is neither copied nor pickled; open the "
            "file again with paramstore.open(…), where the other one runs, write the parameters "
            "to a file with store.save(FILE), or copy.deepcopy(store.get_state())"
        )

    def __repr__(self) -> str:
        what = f"{self._session.where()}: {len(self)} parameters, scope {self._current.scope!r}"
        return f"<ParamStoreDict {what} at version {self.last.version if self.last else 0}>"

    _repr_html_ = showing.repr_html

    # ------------------------------------------------------------------ inside

    def _use(self, working_set: WorkingSet) -> None:
        """Show a working set; Pyro reaches into the first three tables by name."""
        self._current = working_set
        self._params = working_set.params
        self._param_to_name = working_set.names
        self._constraints = working_set.constraints
        self._transforms = working_set.transforms
        self._pairs = dict.items(working_set.params)  # made once: it shows what they become

    def _set(self, name: str, value: Tensor, constraint: Constraint) -> None:
        inverse = self._current.transforms_of(name, constraint).inverse
        tensor = values.to_trained(name, value, constraint, inverse, validate=self._validate)
        if self._current.modules:
            self._session.assign({name: tensor}, {name: constraint})
        else:
            with self._session.lock:
                self._current.put(name, tensor, constraint)
