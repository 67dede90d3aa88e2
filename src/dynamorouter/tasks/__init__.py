"""What everything speaks of: tasks, records, answers, and texts as they are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Answer", "Generation", "Record", "Task", "read_records", "write_records"]

if TYPE_CHECKING:
    from dynamorouter.tasks.answer import Answer
    from dynamorouter.tasks.record import Record, read_records, write_records
    from dynamorouter.tasks.task import Generation, Task
else:
    __getattr__, __dir__ = lazy_names(__name__)
