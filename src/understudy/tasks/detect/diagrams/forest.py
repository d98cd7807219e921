"""Trees as a list of parents: `parents[node]` is the index of a node's parent, or -1 at a root."""

from collections.abc import Sequence

ROOT = -1


def children_of(parents: Sequence[int]) -> list[list[int]]:
    """The children of every node, in the order of their indices."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent != ROOT:
            children[parent].append(node)
    return children


def roots_of(parents: Sequence[int]) -> list[int]:
    """The nodes without a parent."""
    return [node for node, parent in enumerate(parents) if parent == ROOT]


def parents_first(parents: Sequence[int]) -> list[int]:
    """All nodes, each after its parent, a subtree in one piece (depth first)."""
    children = children_of(parents)
    order, waiting = [], roots_of(parents)[::-1]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting.extend(reversed(children[node]))
    return order


def depths_of(parents: Sequence[int]) -> list[int]:
    """How many edges lie between a node and its root."""
    depths = [0] * len(parents)
    for node in parents_first(parents):
        if parents[node] != ROOT:
            depths[node] = depths[parents[node]] + 1
    return depths


def find_fault(parents: Sequence[int]) -> tuple[int, str] | None:
    """What keeps a list of parents from being a forest.

    Returns:
        The first node concerned and what is wrong with it (out of range, or on a cycle); None for a forest.
    """
    count = len(parents)
    for node, parent in enumerate(parents):
        if not ROOT <= parent < count:
            return node, f"parent {parent} is none of the {count} nodes (0 to {count - 1}, or -1 for a root)"
    settled = [False] * count
    for start in range(count):
        path, node = [], start
        while node != ROOT and not settled[node]:
            if node in path:
                cycle = path[path.index(node) :]
                return cycle[0], f"is its own ancestor (cycle {' -> '.join(map(str, [*cycle, node]))})"
            path.append(node)
            node = parents[node]
        for node in path:
            settled[node] = True
    return None
