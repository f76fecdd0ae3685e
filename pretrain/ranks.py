"""Several ranks on this machine without torchrun: for `equivalence`, the tests and trying things out.

The parent keeps the rendezvous store and gives each child the environment that torchrun would give, so that `make_team`
runs as it does in earnest. Children come from a fork server that has imported torch once: 4 ranks start in about 0.3 s.
"""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class RankError(RuntimeError):
    """A rank raised or ended; the message holds its traceback."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank ended: its result, or the text of its error (a traceback, or its exit code if it died)."""

    result: Any = None
    error: str | None = None


def run_ranks(
    num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 120.0
) -> list[Any]:
    """Results of `function(*arguments)` on ranks 0 .. num_ranks - 1 (gloo, CPU), by rank.

    `function` is a top-level function that calls `make_team`.

    Raises:
        RankError: a rank raised, ended, or did not finish in time.
    """
    outcomes = rank_outcomes(num_ranks, function, *arguments, timeout_seconds=timeout_seconds)
    faults = [f"rank {rank}: {outcome.error}" for rank, outcome in enumerate(outcomes) if outcome.error is not None]
    if faults:
        raise RankError("\n".join(faults))
    return [outcome.result for outcome in outcomes]


def rank_outcomes(
    num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 120.0
) -> list[Outcome]:
    """As `run_ranks`, but a rank's failure is part of the result."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "pretrain.step"])
    timeout = timedelta(seconds=timeout_seconds)
    store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not in the list of exports
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout
    )
    processes, pipes = [], []
    for rank in range(num_ranks):
        here, there = context.Pipe(duplex=False)
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        process = context.Process(target=_child, args=(environment, there, function, arguments))
        process.start()
        there.close()
        processes.append(process)
        pipes.append(here)
    try:
        return [_outcome(pipe, process, timeout_seconds) for pipe, process in zip(pipes, processes, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _outcome(pipe: multiprocessing.connection.Connection, process: Any, timeout_seconds: float) -> Outcome:
    if not pipe.poll(timeout_seconds):
        return Outcome(error=f"did not finish within {timeout_seconds:g} s")
    try:
        result, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        return Outcome(error=f"ended with exit code {process.exitcode}")
    return Outcome(result, error)


def _child(
    environment: dict[str, str],
    pipe: multiprocessing.connection.Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    answer: tuple[Any, str | None]
    try:
        answer = function(*arguments), None
    except Exception:  # the parent prints it; a child has nowhere to
        answer = None, traceback.format_exc()
    pipe.send_bytes(pickle.dumps(answer))  # plain pickle: torch's own would share memory that ends with this process
    pipe.close()
    if dist.is_initialized():
        dist.destroy_process_group()
