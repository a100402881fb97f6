"""Long work: steps, progress events, cancel. Knows nothing of what the work is."""

from twofold.operations.operation import Operation, StepHandle
from twofold.operations.registry import Operations
from twofold.operations.scope import TaskScope
from twofold.operations.thread import in_thread

__all__ = ["Operation", "Operations", "StepHandle", "TaskScope", "in_thread"]
