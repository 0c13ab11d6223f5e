"""Campaigns: a history played with very many seeds, by processes here or machines elsewhere.

    with ProcessPoolExecutor(4) as pool, Results("power.jsonl", "tests.power:cut", {}) as results:
        Campaign("tests.power:cut", results, lambda: pool).run(range(0, 1_000_000))

Any `concurrent.futures.Executor` plays batches of seeds. Results are kept as they come, so that
the next run continues where the last one ended. The seeds of a worker that dies are played again;
a seed of which one dies again, alone, has failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Final

from dmcopy.errors import MissingError
from dmcopy.testing import seeds
from dmcopy.testing.results import Results
from dmcopy.testing.seeds import Played

BATCH_SECONDS: Final = 2.0
"""What a batch is to take: its results are lost with its worker."""
_MOST: Final = 20_000
_LONG: Final = 1.0

Batch = Sequence[int]


class Campaign:
    """`history` is MODULE:FUNCTION, played with `options`.

    `executor`: returns one; called again when a worker's death broke the last one, which is then
    shut down. `width`: how many batches are under way together. `stop_at`: sums of what histories
    count at which no more begin. `told` is called about once a second, with nothing.
    """

    def __init__(
        self,
        history: str,
        results: Results,
        executor: Callable[[], Executor],
        *,
        options: Mapping[str, int] | None = None,
        width: int = 2,
        until_failure: bool = False,
        stop_at: Mapping[str, int] | None = None,
        told: Callable[[], object] = lambda: None,
    ) -> None:
        self._history = history
        self._options = dict(options or {})
        self._results = results
        self._make = executor
        self._width = width
        self._until_failure = until_failure
        self._stop_at = dict(stop_at or {})
        self._told = told
        self._executor = executor()
        self._size = 1
        self._left: deque[Batch] = deque()
        self._again: deque[Batch] = deque()
        self._tried: dict[int, int] = {}
        self._under_way: dict[Future[Played], tuple[Batch, Executor]] = {}
        self.deaths = 0

    def run(self, wanted: range) -> None:
        """Play those of the seeds that are not done.

        Raises what keeping results raises, MissingError or RuntimeError where no worker can be had.
        """
        self._left.extend(
            range(start, end) for start, end in self._results.done.gaps(wanted.start, wanted.stop)
        )
        try:
            while self._begin() or self._under_way:
                done, _ = wait(self._under_way, timeout=_LONG, return_when=FIRST_COMPLETED)
                for future in done:
                    self._end(future, *self._under_way.pop(future))
                if not done:
                    self._check_pool()
                self._told()
        finally:
            for future in self._under_way:
                future.cancel()
            # Idle workers end immediately; at the interpreter's end, the pool's thread would meet
            # what is closed already, and say so (Python 3.11).
            self._executor.shutdown(wait=not self._under_way)

    def _check_pool(self) -> None:
        """Raise MissingError where nothing under way will ever end.

        A pool of processes has a thread that hands out what is to be played. Where that could start
        no thread or process it is gone, and concurrent.futures (Python 3.11) tells of it nowhere.
        """
        threads = [
            getattr(pool, "_executor_manager_thread", None) for _, pool in self._under_way.values()
        ]
        gone = any(thread is not None and not thread.is_alive() for thread in threads)
        if gone and not any(future.done() for future in self._under_way):
            raise MissingError(
                "the workers get no more to do, as where no thread may be started: "
                "raise the limits (ulimit -u, ulimit -v), or give fewer --workers"
            )

    @property
    def _stopped(self) -> bool:
        counts = self._results.counts
        enough = any(counts.get(name, 0) >= sum_ for name, sum_ in self._stop_at.items())
        return enough or (self._until_failure and bool(self._results.failures))

    def _begin(self) -> bool:
        """Have as many batches under way as there may be; return whether there are more."""
        while not self._stopped and len(self._under_way) < self._width:
            if self._waits_for_suspects():
                return True
            if (batch := self._next()) is None:
                return False
            executor = self._executor
            try:
                future = executor.submit(
                    seeds.play, self._history, batch, self._options, stop=self._until_failure
                )
            except BrokenExecutor:  # by a death that the futures under way tell of, too
                self._again.append(batch)
                self._renew(executor)
                return True
            self._under_way[future] = batch, executor
        return not self._stopped and bool(self._left or self._again)

    def _waits_for_suspects(self) -> bool:
        """Whether what comes next has to wait: a seed that workers died with is played alone."""
        if any(self._is_suspect(batch) for batch, _ in self._under_way.values()):
            return True
        return bool(self._again and self._under_way) and self._is_suspect(self._again[0])

    def _is_suspect(self, batch: Batch) -> bool:
        return len(batch) == 1 and self._tried.get(batch[0], 0) > 1

    def _next(self) -> Batch | None:
        if self._again:
            return self._again.popleft()
        if not self._left:
            return None
        first = self._left[0]
        batch, rest = first[: self._size], first[self._size :]
        if rest:
            self._left[0] = rest
        else:
            self._left.popleft()
        return batch

    def _end(self, future: Future[Played], batch: Batch, executor: Executor) -> None:
        error = future.exception()
        if error is None:
            played = future.result()
            self._results.add(played)
            if rest := batch[len(played.seeds) :]:
                self._left.append(rest)
            self._adapt(played)
            return
        self.deaths += 1
        was_alone = self._is_suspect(batch)
        for seed in batch:
            self._tried[seed] = self._tried.get(seed, 0) + 1
        if was_alone:
            text = f"its worker died of it: {type(error).__name__}: {error}"
            self._results.add(Played(list(batch), failures={batch[0]: text}))
        elif self._tried[batch[0]] > 1:  # with which of them it dies shows when each is alone
            self._again.extend([seed] for seed in batch)
        else:  # it may have died of what was under way beside it
            self._again.append(batch)
        if isinstance(error, BrokenExecutor):
            self._renew(executor)

    def _renew(self, broken: Executor) -> None:
        """Take a new executor for the broken one, unless that was done."""
        if broken is self._executor:
            self._executor = self._make()
            broken.shutdown(wait=False)

    def _adapt(self, played: Played) -> None:
        """Have the next batches take about as long as they should."""
        each = played.seconds / len(played.seeds)
        fitting = int(BATCH_SECONDS / each) if each > 0 else _MOST
        self._size = max(1, min(fitting, self._size * 4, _MOST))
