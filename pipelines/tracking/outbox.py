"""`Outbox`: calls to a server that may be away; in order, from a thread, none lost unsaid."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Between attempts while the server is away.
RETRY_EVERY_S = 5.0
#: Attempts at a call that fails though the server answers.
MAX_ATTEMPTS = 3
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Letter:
    what: str
    call: Callable[[], Any]


class Outbox:
    """Makes calls one after the other, so that whoever adds one never waits.

    A call that fails while `probe` fails as well waits for the server to come back, and all later
    ones with it. One that fails though the server answers is tried again, and then given up.
    """

    def __init__(self, where: str, probe: Callable[[], Any]) -> None:
        """Start the thread.

        Args:
            where: the server, for messages.
            probe: a cheap call that raises while the server is away.
        """
        self._where, self._probe = where, probe
        self._letters: deque[_Letter] = deque()
        self._given_up: list[str] = []
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._is_away = False
        self._thread = threading.Thread(target=self._work, name="mlflow-outbox", daemon=True)
        self._thread.start()

    def add(self, what: str, call: Callable[[], Any]) -> None:
        """Have a call made; returns at once.

        Args:
            what: that is sent, for messages.
            call: may be made again after it failed.
        """
        with self._changed:
            self._letters.append(_Letter(what, call))
            self._changed.notify()

    @property
    def given_up(self) -> list[str]:
        """What the server refused, so far."""
        return list(self._given_up)

    def close(self, *, patience_s: float) -> list[str]:
        """Make the calls that are left, for as long as `patience_s` if the server is away.

        Returns:
            What never got there.
        """
        with self._changed:
            self._deadline = time.monotonic() + patience_s
            self._changed.notify()
        self._thread.join()
        return self._given_up + [letter.what for letter in self._letters]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._letters or self._deadline is not None)
                if not self._letters:
                    return
                letter = self._letters[0]
            if not self._deliver(letter):
                return
            self._letters.popleft()

    def _deliver(self, letter: _Letter) -> bool:
        """Make a call until it succeeds or is given up; False once there is no time left."""
        attempts = 0
        while True:
            try:
                letter.call()
                self._is_away = False
                return True
            except Exception as error:  # noqa: BLE001
                # Whatever tracking raises, training is worth more than its record.
                failure = error
            if self._answers():
                attempts += 1
                if attempts == MAX_ATTEMPTS:
                    self._given_up.append(f"{letter.what} ({failure})")
                    _logger.warning("MLflow at %s: %s: %s", self._where, letter.what, failure)
                    return True
            elif not self._is_away:
                self._is_away = True
                _logger.warning(
                    "MLflow at %s does not answer (%s); training goes on, and what it misses is "
                    "sent later",
                    self._where,
                    failure,
                )
            if not self._pause():
                return False

    def _answers(self) -> bool:
        try:
            self._probe()
            return True
        except Exception:  # noqa: BLE001 - any failure means that it is away
            return False

    def _pause(self) -> bool:
        """Wait before another attempt; False if the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._deadline is not None, timeout=RETRY_EVERY_S)
            if self._deadline is None:
                return True
            left_s = self._deadline - time.monotonic()
        time.sleep(min(max(left_s, 0.0), RETRY_EVERY_S, 1.0))
        return left_s > 0
