"""A job's log on this terminal, as it grows, through lost connections."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from clippo_core.errors import StorageError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_ASK_EVERY_S = 2.0
#: A head that is moved to another machine is back by then.
_GIVE_UP_AFTER_S = 600.0


async def follow_job(client: JobSubmissionClient, submission_id: str) -> JobDetails:
    """Print the log until the job ends; how it ended.

    Raises:
        StorageError: if the cluster is gone for long.
    """
    from aiohttp import ClientError

    terminal, lost_at = _Terminal(), None
    while True:
        try:
            details = await _follow(client, submission_id, terminal)
            if details.status.is_terminal():
                return details
            lost_at = None
        # requests raises the first, aiohttp the second, Ray the third where a socket closes.
        except (OSError, ClientError, RuntimeError) as error:
            lost_at = lost_at or time.monotonic()
            terminal.note(f"the connection was lost, trying again: {error}")
            if time.monotonic() - lost_at > _GIVE_UP_AFTER_S:
                raise StorageError(
                    f"the cluster does not answer any more ({error}); the job may go on there"
                ) from error
        await asyncio.sleep(_ASK_EVERY_S)


async def _follow(
    client: JobSubmissionClient, submission_id: str, terminal: _Terminal
) -> JobDetails:
    """Print what there is until the log's end or the connection's."""
    details = client.get_job_info(submission_id)
    if details.status == "PENDING":
        terminal.note(f"pending: {details.message}")
        return details
    terminal.rewind()
    async for chunk in client.tail_job_logs(submission_id):
        terminal.print(chunk)
    return client.get_job_info(submission_id)


class _Terminal:
    """What was printed of a log, which comes from its beginning with every connection."""

    def __init__(self) -> None:
        self._printed, self._seen, self._note = 0, 0, ""

    def rewind(self) -> None:
        """The log comes from its beginning."""
        self._seen = 0

    def print(self, chunk: str) -> None:
        """Print what is new in the next part."""
        new = chunk[max(self._printed - self._seen, 0) :]
        self._seen += len(chunk)
        self._printed = max(self._printed, self._seen)
        print(new, end="", flush=True)

    def note(self, text: str) -> None:
        """Say something of our own, unless it was said last."""
        if text != self._note:
            print(text, file=sys.stderr)
        self._note = text
