"""In which order do linked nodes follow each other? List ranking without a Python loop.

Boundary tracing ends in one question for millions of nodes at once: given the (at most two)
neighbours of every node, walk every path from end to end and every cycle once around. The walk is
done by one breadth-first search of SciPy over all chains strung together, which is a single loop
in C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chains:
    """Nodes in walking order, one chain after the other."""

    order: IntArray
    """``(n,)`` node numbers; every node occurs once."""
    offsets: IntArray
    """``(m + 1,)``; chain ``i`` is ``order[offsets[i]:offsets[i + 1]]``."""
    closed: npt.NDArray[np.bool_]
    """``(m,)``; True where the last node of the chain is linked to its first."""


def order_chains(links: IntArray) -> Chains:
    """Walk all chains of a graph whose nodes have at most two neighbours.

    A path is walked from its end with the smaller number; a cycle from its smallest node, leaving
    it along its first link.

    Parameters
    ----------
    links
        ``(n, 2)`` neighbours of each node. A missing neighbour is the node itself, and the second
        one is missing first; a cycle of one node has both missing.

    Returns
    -------
    Chains
        In no particular order of the chains.
    """
    nodes = np.arange(len(links), dtype=np.int64)
    if not len(links):
        return Chains(nodes, np.zeros(1, np.int64), np.zeros(0, np.bool_))
    count, label = connected_components(_graph(links), directed=False)
    first = np.full(count, len(links), np.int64)
    last = np.full(count, -1, np.int64)
    ends = nodes[links[:, 1] == nodes]
    np.minimum.at(first, label[ends], ends)
    np.maximum.at(last, label[ends], ends)
    closed = last < 0
    if closed.any():
        on_cycle = nodes[closed[label]]
        np.minimum.at(first, label[on_cycle], on_cycle)
        last[closed] = links[first[closed], 1]
    strung = _string_together(links, first, last, closed)
    order = breadth_first_order(_graph(strung), int(first[0]), return_predecessors=False)
    sizes = np.bincount(label, minlength=count)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Chains(order.astype(np.int64, copy=False), offsets, closed)


def _string_together(
    links: IntArray, first: IntArray, last: IntArray, closed: npt.NDArray[np.bool_]
) -> IntArray:
    """Replace the open ends (and the closing link of cycles) by links to the next chain."""
    strung = links.copy()
    # The last node of a cycle gives up its link to the first; that of a path has one to spare.
    spare = np.where(first == last, 0, 1)
    slot = np.where(closed, (links[last, 0] != first).astype(np.int64), spare)
    strung[first, 1] = np.concatenate([first[:1], last[:-1]])
    strung[last[:-1], slot[:-1]] = first[1:]
    return strung


def _graph(links: IntArray) -> csr_array:
    n = len(links)
    dtype = np.int32 if 2 * n < np.iinfo(np.int32).max else np.int64
    starts = np.arange(0, 2 * n + 1, 2, dtype=dtype)
    return csr_array((np.ones(2 * n), links.ravel().astype(dtype), starts), shape=(n, n))
