"""Deal patients to parts: exact quotas for each value of the first stratum, even shares in the others, places kept."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-9  # 0.29 * 100 is 28.999999999999996; quotas must not lose a patient to that
UNPLACED = -1

Codes = NDArray[np.int64]
Places = NDArray[np.int8]  # position in the tuple of parts; UNPLACED for a patient without a place


def keyed_ranks(keys: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """[N] a random number for each key; it depends on the key and the seed, not on the other keys or their order."""
    secret = seed.to_bytes(16, "little")
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8, key=secret).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def assign(ranks: NDArray[np.uint64], strata: Sequence[Codes], shares: NDArray[np.float64], earlier: Places) -> Places:
    """[N] the part of each patient, a position in `shares`.

    Args:
        ranks: [N] a random number per patient; ties are broken by position.
        strata: [N] codes each; quotas hold within each value of the first, the others are spread evenly.
        earlier: [N] places to keep, UNPLACED for new patients.
    """
    places = earlier.copy()
    carried = np.zeros(len(shares))  # keeps the parts' totals near their shares over many small labels
    order = np.lexsort((ranks, *reversed(strata)))
    _, starts = np.unique(strata[0][order], return_index=True)
    for members in np.split(order, starts[1:]):
        kept = np.bincount(earlier[members][earlier[members] != UNPLACED], minlength=len(shares))
        quotas = _quotas(len(members), shares, carried)
        carried += shares * len(members) - quotas
        new = members[earlier[members] == UNPLACED]
        places[new] = _deal(_fitting(np.maximum(quotas - kept, 0), len(new), shares))
    return places


def _quotas(num_patients: int, shares: NDArray[np.float64], carried: NDArray[np.float64]) -> Codes:
    exact = shares * num_patients
    quotas = np.floor(exact + EPSILON).astype(np.int64)
    remainders = np.where(exact - quotas > EPSILON, exact - quotas + carried, -np.inf)
    quotas[np.argsort(-remainders, kind="stable")[: num_patients - int(quotas.sum())]] += 1
    # A small class should be seen in every part: a part that would get none takes one from the largest.
    for part in np.flatnonzero((quotas == 0) & (shares > 0)):
        giver = int(np.argmax(quotas))
        if num_patients >= np.count_nonzero(shares) and quotas[giver] - 1 >= max(1.0, exact[giver] - 1 - EPSILON):
            quotas[giver] -= 1
            quotas[part] += 1
    return quotas


def _fitting(needs: Codes, num_new: int, shares: NDArray[np.float64]) -> Codes:
    """`needs` scaled to sum to `num_new`; they differ after patients left or changed label, or the shares changed."""
    if needs.sum() == num_new:
        return needs
    weights = needs if needs.sum() else shares
    exact = weights * (num_new / weights.sum())
    fitting: Codes = np.floor(exact + EPSILON).astype(np.int64)
    fitting[np.argsort(fitting - exact, kind="stable")[: num_new - int(fitting.sum())]] += 1
    return fitting


def _deal(counts: Codes) -> Places:
    """`counts[p]` times p, in every stretch about its share: the j-th p is due at (j + 1/2) / counts[p]."""
    parts = np.repeat(np.arange(len(counts), dtype=np.int8), counts)
    due = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    sequence: Places = parts[np.argsort(due, kind="stable")]
    return sequence
