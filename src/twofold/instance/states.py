"""The states of an instance, the legal ways between them, and which verb is legal where.

An illegal verb raises IllegalState: it names the state, the verb and what to type instead.
"""

from twofold.errors import IllegalState
from twofold.model.instance import State

__all__ = ["TRANSITIONS", "VERBS", "State", "check", "move"]

TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATED: frozenset({State.STARTING}),
    # A failed start leads back to where it came from.
    State.STARTING: frozenset({State.RUNNING, State.CREATED, State.STOPPED, State.SUSPENDED}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPING, State.STOPPED, State.SUSPENDED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPING, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset({State.STARTING, State.SUSPENDED}),
    # A virtual machine without a process: its memory and devices are on the disk.
    State.SUSPENDED: frozenset({State.STARTING, State.STOPPED}),
}

VERBS: dict[str, frozenset[State]] = {
    "start": frozenset({State.CREATED, State.STOPPED, State.SUSPENDED}),
    "stop": frozenset({State.RUNNING, State.PAUSED, State.STOPPING}),
    "restart": frozenset({State.CREATED, State.STOPPED, State.RUNNING, State.PAUSED}),
    "kill": frozenset({State.RUNNING, State.PAUSED, State.STOPPING}),
    "pause": frozenset({State.RUNNING}),
    "resume": frozenset({State.PAUSED, State.SUSPENDED}),
    "suspend": frozenset({State.RUNNING}),
    "exec": frozenset({State.RUNNING}),
    "copy": frozenset({State.RUNNING}),
    "attach": frozenset({State.RUNNING, State.PAUSED}),
    "top": frozenset({State.RUNNING, State.PAUSED}),
    "stats": frozenset({State.RUNNING, State.PAUSED}),
    "set": frozenset({State.CREATED, State.RUNNING, State.PAUSED, State.STOPPED}),
    "plug": frozenset({State.CREATED, State.RUNNING, State.STOPPED}),
    "unplug": frozenset({State.CREATED, State.RUNNING, State.STOPPED}),
    "remove": frozenset({State.CREATED, State.STOPPED, State.SUSPENDED}),
    "discard": frozenset({State.SUSPENDED}),
    "snapshot": frozenset(
        {State.CREATED, State.RUNNING, State.PAUSED, State.STOPPED, State.SUSPENDED}
    ),
    "restore": frozenset(
        {State.CREATED, State.RUNNING, State.PAUSED, State.STOPPED, State.SUSPENDED}
    ),
}

# What a shell takes as it is, by the state that is in the way. {name} is the instance's.
_HINTS: dict[State, str] = {
    State.CREATED: "twofold start {name}",
    State.STARTING: "twofold show {name}    # until it runs",
    State.RUNNING: "twofold stop {name}",
    State.PAUSED: "twofold resume {name}",
    State.STOPPING: "twofold kill {name}",
    State.STOPPED: "twofold start {name}",
    State.SUSPENDED: "twofold resume {name}",
}
_HINTS_BY_VERB: dict[tuple[str, State], str] = {
    ("start", State.RUNNING): "twofold restart {name}    # starts it anew",
    ("resume", State.RUNNING): "twofold show {name}",
    ("suspend", State.PAUSED): "twofold resume {name}; twofold suspend {name}",
    ("stop", State.SUSPENDED): (
        "twofold resume {name}    # or give its memory up: twofold stop --discard {name}"
    ),
    ("restart", State.SUSPENDED): (
        "twofold resume {name}    # or give its memory up: twofold stop --discard {name}"
    ),
    ("discard", State.RUNNING): "twofold stop {name}    # --discard is for suspended machines",
    ("remove", State.RUNNING): "twofold stop {name}    # or at once: twofold rm --force {name}",
    ("remove", State.PAUSED): "twofold rm --force {name}",
    ("remove", State.STARTING): "twofold rm --force {name}",
    ("remove", State.STOPPING): "twofold rm --force {name}",
}


def check(verb: str, state: State, name: str, *, reason: str = "", way_out: str = "") -> None:
    """Raise IllegalState unless ``verb`` is legal in ``state``. ``reason``: why it is in that
    state, where that is not the user's doing; ``way_out`` is the hint then."""
    if state in VERBS[verb]:
        return
    hint = _HINTS_BY_VERB.get((verb, state), _HINTS[state]).format(name=name)
    raise IllegalState(
        f"cannot {verb} {name!r}: it is {state.value}" + (f" ({reason})" if reason else ""),
        hint=way_out if reason else hint,
        details={"name": name, "state": state.value, "verb": verb},
    )


def has(verb: str, state: State) -> bool:
    """Whether ``verb`` is legal in ``state``."""
    return state in VERBS[verb]


def move(current: State, target: State, name: str) -> State:
    """``target`` when that step is legal; else IllegalState (a bug of ours, said plainly)."""
    if target not in TRANSITIONS[current]:
        raise IllegalState(
            f"{name!r} cannot go from {current.value} to {target.value}",
            hint=f"twofold show {name}",
        )
    return target
