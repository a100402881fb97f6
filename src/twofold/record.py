"""Plans as plain records, for processes whose start-up time is a budget.

``dataclass`` and ``field`` here are, to a type checker, those of the standard library. At run time
they cost next to nothing: importing ``dataclasses`` takes 15 ms (it pulls in ``inspect`` and
``re``) and every class another 0.7 ms of generated code; an OCI runtime has to be done in 30 ms.
Only what plans need is there: keyword-only fields, defaults, ``frozen``, equality, ``replace``,
``asdict`` and ``__post_init__``. Refuses positional fields and every other option.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import asdict as asdict
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:

    class _Factory:
        __slots__ = ("make",)

        def __init__(self, make):
            self.make = make

    _MISSING = object()

    class _Fields:
        """Lets the functions of ``dataclasses`` work on records, for who has imported it anyway."""

        def __get__(self, _, cls):
            from dataclasses import make_dataclass

            # Once: generating the code of a class takes 0.7 ms.
            found = make_dataclass(cls.__name__, list(cls._record_defaults)).__dataclass_fields__
            cls.__dataclass_fields__ = found
            return found

    def field(*, default=_MISSING, default_factory=_MISSING):
        """The default of a field, or the function that makes it."""
        return _Factory(default_factory) if default is _MISSING else default

    def dataclass(*, kw_only, frozen=False):
        """Make the class a record of its annotated fields."""
        if not kw_only:
            raise TypeError("records have keyword-only fields")

        def decorate(cls):
            defaults = dict(getattr(cls, "_record_defaults", {}))
            for name in vars(cls).get("__annotations__", ()):
                defaults[name] = vars(cls).get(name, _MISSING)
            cls._record_defaults = defaults
            cls._record_makers = {
                name: value.make for name, value in defaults.items() if type(value) is _Factory
            }
            cls._record_plain = {
                name: value
                for name, value in defaults.items()
                if type(value) is not _Factory and value is not _MISSING
            }
            cls.__init__, cls.__eq__, cls.__repr__ = _init, _equal, _show
            cls.__dataclass_fields__ = _Fields()
            if frozen:
                cls.__setattr__, cls.__delattr__, cls.__hash__ = _refuse_set, _refuse_set, _hash
            else:
                cls.__hash__ = None
            return cls

        return decorate

    def _init(self, **given):
        values = self.__dict__
        values.update(self._record_plain)
        values.update(given)
        defaults = self._record_defaults
        for name, make in self._record_makers.items():
            if name not in given:
                values[name] = make()
        if len(values) != len(defaults):
            unknown = [name for name in given if name not in defaults]
            missing = [name for name in defaults if name not in values]
            what = f"unknown {unknown}" if unknown else f"missing {missing}"
            raise TypeError(f"{type(self).__name__}: fields {what}")
        after = getattr(self, "__post_init__", None)
        if after is not None:
            after()

    def _equal(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def _hash(self):
        return hash((type(self), *(self.__dict__[name] for name in self._record_defaults)))

    def _show(self):
        shown = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._record_defaults)
        return f"{type(self).__name__}({shown})"

    def _refuse_set(self, name, *_):
        raise AttributeError(f"{type(self).__name__} is frozen: cannot change {name!r}")

    def replace(record, /, **changes):
        """A copy of the record with some fields changed."""
        return type(record)(**{**record.__dict__, **changes})

    def asdict(record):
        """The record, and the records in it, as plain dicts."""
        return {name: _plain(record.__dict__[name]) for name in record._record_defaults}

    def _plain(value):
        if hasattr(value, "_record_defaults"):
            return asdict(value)
        if isinstance(value, dict):
            return {key: _plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(_plain(item) for item in value)
        return value
