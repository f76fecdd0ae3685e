"""What the drivers of several ranks tell each other between two trainings, through the store that torchrun keeps.

A driver starts one training process after the other on its rank. Each training opens its process group at a port of its own:
a second group in torchrun's store would find the addresses of the first. One process alone needs none of this.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from ingest.errors import ConfigError, UserError
from pretrain.exit_codes import EXIT_RANK_LOST

ValueT = TypeVar("ValueT")


class DriverError(UserError):
    """The driver of another rank ended or did not answer."""

    exit_code = EXIT_RANK_LOST


@dataclass(slots=True)
class Drivers:
    """This driver among those of all ranks; made by `open_drivers`. Every rank makes the same calls in the same order."""

    rank: int
    num_ranks: int
    _store: Any = field(default=None, repr=False)  # torch.distributed.Store
    _num_calls: int = 0

    def from_first(self, compute: Callable[[], ValueT]) -> ValueT:
        """What `compute` gives on rank 0 (anything that JSON can carry), on every rank.

        Raises:
            UserError: `compute` raised it, on rank 0; the others raise DriverError.
        """
        if self._store is None:
            return compute()
        if self.rank != 0:
            answer = json.loads(self._get(self._next_key(), 0))
            if "error" in answer:
                raise DriverError(f"rank {self.rank}: rank 0 ended: {answer['error']}")
            value: ValueT = answer["value"]
            return value
        key = self._next_key()
        try:
            value = compute()
        except UserError as error:
            self._store.set(key, json.dumps({"error": str(error)}))
            raise
        self._store.set(key, json.dumps({"value": value}))
        return value

    def from_all(self, value: ValueT) -> list[ValueT]:
        """The values of all ranks, by rank, on every rank."""
        if self._store is None:
            return [value]
        key = self._next_key()
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        return [json.loads(self._get(f"{key}/{rank}", rank)) for rank in range(self.num_ranks)]

    def environment(self, free_port: Callable[[], int]) -> Mapping[str, str]:
        """Variables with which the next training of all ranks meets at a port of its own."""
        if self._store is None:
            return {}
        return {"MASTER_PORT": str(self.from_first(free_port)), "TORCHELASTIC_USE_AGENT_STORE": "False"}

    def _next_key(self) -> str:
        self._num_calls += 1
        return f"call_{self._num_calls}"

    def _get(self, key: str, rank: int) -> str:
        try:
            found: bytes = self._store.get(key)
        except RuntimeError as error:
            raise DriverError(f"rank {self.rank}: the driver of rank {rank} ended or did not answer in time; its own message "
                              "says why") from error  # fmt: skip
        return found.decode()


def open_drivers(timeout_seconds: float, environment: Mapping[str, str] = os.environ) -> Drivers:
    """The drivers of all ranks that torchrun started, or of the one process that there is.

    Args:
        timeout_seconds: how long a driver waits for another one after its own training has ended.
    Raises:
        ConfigError: several ranks that torchrun did not start.
    """
    num_ranks = int(environment.get("WORLD_SIZE", "1"))
    if num_ranks == 1:
        return Drivers(0, 1)
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError(f"--scheme with {num_ranks} ranks: start them with torchrun, which keeps the store that the ranks "
                          "agree through")  # fmt: skip
    import torch.distributed as dist  # only here: one process drives its folds without torch

    store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not in the list of exports
        environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False,
        timeout=timedelta(seconds=timeout_seconds),
    )  # fmt: skip
    return Drivers(int(environment["RANK"]), num_ranks, dist.PrefixStore("drivers", store))  # type: ignore[attr-defined]
