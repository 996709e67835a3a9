"""Jobs side by side, one process per core, and a stop that is one line. Imports little: a program begins with it."""

import contextlib
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator

STOPS = (signal.SIGINT, signal.SIGTERM)
WORKERS = []  # of the last pool, for the handler
WORKER = False  # is this process one?


def stop_in_one_line(name: str) -> None:
    """From now on Ctrl-C and SIGTERM end this process and its workers at once. An ignored signal stays so (nohup)."""
    def stop(number: int, _) -> None:
        for either in STOPS:
            signal.signal(either, signal.SIG_IGN)  # a second Ctrl-C changes nothing
        for worker in WORKERS:
            worker.kill()
        with contextlib.suppress(OSError):
            os.write(2, f"\n{name}: stopped; what was evaluated is kept, and --resume goes on from there\n".encode())
        os._exit(128 + number)  # an exception could be lost, or print a page, in whatever was interrupted

    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def write(name: str, text: str) -> None:
    """To sys.stdout or sys.stderr. A program never dies for what it prints: where that fails, it is silent after."""
    stream = getattr(sys, name)  # None, if it was closed before the start
    try:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        if stream:
            print(text, end="", file=stream, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str, name: str = "stdout") -> None:
    """A lasting line; on a terminal, in the place of the progress line."""
    if sys.stderr and sys.stderr.isatty():
        write("stderr", "\r\033[K")
    write(name, f"{text}\n")


def progress(label: str, done: int, total: int, began: dict = {}) -> None:  # noqa: B006, it is to be kept
    """One line on a terminal, written over: how far, and how long still. Of workers nothing is shown."""
    if WORKER or not (sys.stderr and sys.stderr.isatty()):
        return
    start, first = began.setdefault(label, (time.monotonic(), done))
    left = (time.monotonic() - start) * (total - done) / max(1, done - first)
    write("stderr", f"\r\033[K{label} {done}/{total}" + (f"  {left:.0f} s left" if done > first else ""))


def command(name: str, main: Callable[[], None], refusal: type[Exception]) -> None:
    """Runs a program: what it refuses is one line on standard error and exit code 2."""
    warnings.showwarning = lambda remark, *_: say(f"{name}: {remark}", "stderr")  # one line, too
    try:
        main()
    except (refusal, OSError) as error:
        say(f"{name}: {error}", "stderr")
        sys.exit(2)
    finally:  # what argparse printed may be waiting for a pipe that is closed
        write("stdout", "")
        write("stderr", "")


@contextlib.contextmanager
def stops_wait() -> Iterator[None]:
    """A stop waits for the end of the block. Processes that start in the block never see Ctrl-C."""
    caught = []
    handlers = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in STOPS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited, from the first moment
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in caught[:1]:
            signal.raise_signal(number)


def worker_begins() -> None:
    """One torch thread per worker, and it does not outlive its parent."""
    global WORKER
    import multiprocessing
    import threading
    WORKER = True
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    import torch
    torch.set_num_threads(1)


def side_by_side(jobs: list[tuple], label: str) -> Iterator:
    """The results of all jobs (function, *arguments), in their order; one process of one torch thread per core.

    A single job, or any on one core, runs in this process. What a job raises is raised here as soon as it happens, and
    ends the other jobs; so does a caller that stops asking. OSError if a worker is killed. For the main thread only.
    """
    count = min(os.cpu_count() or 1, len(jobs))
    if count < 2:
        yield from (function(*arguments) for function, *arguments in jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    # After a stop multiprocessing's resource tracker frees the pool's semaphores. It would warn that it does.
    sys.warnoptions.append("ignore:resource_tracker")
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), worker_begins) as pool:
        try:
            with stops_wait():
                results = deque(pool.submit(*job) for job in jobs)  # starts the workers
                pool.submit(os.getpid)  # makes the pool look again: of the last worker's death it would not hear
                WORKERS[:] = multiprocessing.active_children()
            progress(label, 0, len(jobs))
            for done, future in enumerate(as_completed(tuple(results)), 1):
                future.result()  # what goes wrong is raised before its turn
                progress(label, done, len(jobs))
                while results and results[0].done():
                    yield results.popleft().result()
        except BaseException as error:
            for worker in multiprocessing.active_children():
                worker.kill()
            if isinstance(error, BrokenProcessPool):
                raise OSError("a worker process ended before its job was done: killed, or out of memory") from None
            raise
