"""Runs all checks at once and gathers what they say, bounded in time."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from twofold.daemon.doctor import host, images, isolation, machines, network, resources, storage
from twofold.daemon.doctor.fact import DEGRADED, Fact
from twofold.daemon.doctor.survey import Survey
from twofold.model.paths import Paths

GROUPS = (host, isolation, resources, storage, network, machines, images)


def run(paths: Paths, *, deadline_s: float) -> list[Fact]:
    deadline = time.monotonic() + deadline_s
    # Not joined at the end: a check that hangs in the kernel must not hold up the answer.
    pool = ThreadPoolExecutor(max_workers=12, thread_name_prefix="doctor")
    survey = Survey(paths, deadline=deadline)
    try:
        asked: list[tuple[str, str, Future[list[Fact]]]] = []
        for group in GROUPS:
            for check in group.CHECKS:
                future = pool.submit(_listed, check, survey)
                asked.append((group.GROUP, check.__name__, future))
        return [fact for item in asked for fact in _result(*item, deadline=deadline)]
    finally:
        survey.close()
        pool.shutdown(wait=False, cancel_futures=True)


def _listed(check: Callable[[Survey], Iterable[Fact]], survey: Survey) -> list[Fact]:
    return list(check(survey))


def _result(group: str, name: str, future: "Future[list[Fact]]", *, deadline: float) -> list[Fact]:
    try:
        return future.result(timeout=max(0.05, deadline - time.monotonic()))
    except TimeoutError:
        reason = "the check did not finish in time; the machine may be busy: ask again"
    except Exception as error:
        reason = f"the check itself failed: {type(error).__name__}: {error}"
    title = name.replace("_", " ")
    return [Fact(id=f"check-{name}", title=title, group=group, status=DEGRADED, reason=reason)]
