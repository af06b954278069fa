"""FAISS index types by name: which can be used, for which sets, and how they are filled."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import EnvironmentFault, UserError

EXACT = "Flat"

POINTS_PER_CENTROID = 39
"""Fewer training vectors a centroid than this give poor centroids; FAISS then warns, below 1 it fails."""

ANY_WIDTH = 3840
"""Stands for a width that is not known yet: most numbers of pieces divide it."""

SMALL = 640
"""Vectors of a small index: 40 for each of the 16 centroids of 4 bits."""

GRAPHS = ("HNSW", "NSG", "NNDescent")


def filled_index(vectors: NDArray[np.float32], factory: str, refreshed: bool) -> Any:
    """A FAISS index by inner product of the type `factory`, trained on `vectors` [n, dim] and holding them.

    refreshed: searches are restricted to a set that changes. FAISS trains from a fixed seed. Raises
    UserError on a name that is no index type, a type that a changing set cannot use, and too few vectors.
    """
    total, dim = vectors.shape
    index = _unfilled(factory, total, dim, refreshed)
    if factory != EXACT:
        _check_enough(faiss_module(), index, factory, total)
        index.train(vectors)
    if total:
        index.add(vectors)
    return index


def faiss_module() -> Any:
    """The library. Raises EnvironmentFault where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise EnvironmentFault(
            "index.backend is faiss, and no FAISS is installed",
            "pip install 'roma_ds[cpu]' (or [gpu], never both), or set index.backend=torch",
        ) from error
    return faiss


def check_factory(
    factory: str, dim: int | None, total: int | None, refreshed: bool, has_radius: bool
) -> None:
    """Raises UserError where an index of type `factory` cannot do what a run asks, before there are vectors.

    dim: numbers of an embedding, total: vectors of a rank, None while they are not known; refreshed: as
    `filled_index`; has_radius: whether all neighbours within a distance are asked for. Raises
    EnvironmentFault without FAISS.
    """
    faiss = faiss_module()
    if factory == EXACT:
        return
    width = dim or ANY_WIDTH
    index = _unfilled(factory, total or 0, width, refreshed)
    if total is not None:
        _check_enough(faiss, index, factory, total)
    if has_radius and not _finds_within(faiss, factory, width):
        raise UserError(
            f"index.factory {factory} cannot search by roma.epsilon: FAISS has no range search for this type",
            f"{_advice(total or 0, width)}; or unset roma.epsilon and use roma.neighbours",
        )


def _finds_within(faiss: Any, factory: str, dim: int) -> bool:
    """Tried on a small index of the same make: few lists, codes of few bits, a rotation not learned."""
    small = re.sub(r"(?<!O)PQ(\d+)(x\d+)?(?!\w)", r"PQ\1x4", factory)
    small = re.sub(r"IVF\d+", "IVF2", small)
    small = re.sub(r"OPQ\d+(?:_(\d+))?,", lambda found: f"RR{found[1]}," if found[1] else "", small)
    vectors = np.random.default_rng(0).standard_normal((SMALL, dim), np.float32)
    threads = faiss.omp_get_max_threads()
    # Several threads fight over so little, and the setting is the whole library's.
    faiss.omp_set_num_threads(1)
    try:
        index = faiss.index_factory(dim, small, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        index.range_search(vectors[:1], 1e30)
    except RuntimeError as error:
        return "range search" not in str(error) and "range_search" not in str(error)
    finally:
        faiss.omp_set_num_threads(threads)
    return True


def _unfilled(factory: str, total: int, dim: int, refreshed: bool) -> Any:
    faiss = faiss_module()
    if factory == EXACT:
        return faiss.IndexFlatIP(dim)
    _refuse_graph(factory, refreshed)
    index = _parsed(faiss, factory, total, dim)
    if refreshed and not restricts(index):
        raise UserError(
            f"index.factory {factory} cannot search among the members of a set that changes",
            _advice(total, dim),
        )
    return index


def inverted_lists(index: Any) -> Any:
    """The part of a FAISS index that keeps vectors in lists around centroids; None where there is none."""
    import faiss

    inner = _inside(faiss, index)
    return inner if isinstance(inner, faiss.IndexIVF) else None


def _refuse_graph(factory: str, refreshed: bool) -> None:
    # As the coarse quantizer of an IVF index (IVF1024_HNSW32) a graph holds centroids, which do not change.
    stored = re.sub(r"IVF\d+_\w+", "", factory)
    graph = next((name for name in GRAPHS if name in stored), None)
    if graph is not None and refreshed:
        raise UserError(
            f"index.factory {factory} cannot follow a set that changes: {graph} walks from neighbour to "
            "neighbour, nothing can be removed from it, and a walk for few members ends before it meets them",
            "set index.factory to Flat, or IVF<lists>,Flat for large sets, or roma.refresh=never",
        )


def _parsed(faiss: Any, factory: str, total: int, dim: int) -> Any:
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _unusable(factory, str(error).splitlines()[0].rsplit("Error: ", 1)[-1], total, dim) from error
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        raise _unusable(factory, "ids are kept outside the index", total, dim)
    lists = inverted_lists(index)
    if lists is not None and lists.nlist < 1:
        raise _unusable(factory, "it has no lists", total, dim)
    return index


def _unusable(factory: str, reason: str, total: int, dim: int) -> UserError:
    said = re.sub(r".*?: (?=could not parse)", "", reason)
    return UserError(f"index.factory {factory!r} is no index type to use here: {said}", _advice(total, dim))


def _advice(total: int, dim: int) -> str:
    lists = str(max(1, min(round(4 * total**0.5), total // POINTS_PER_CENTROID))) if total else "<lists>"
    pieces = next(number for number in (48, 32, 16, 8, 4, 2, 1) if dim % number == 0)
    return f"set index.factory to Flat (exact), or for large sets to IVF{lists},Flat or IVF{lists},PQ{pieces}"


def _inside(faiss: Any, index: Any) -> Any:
    """The index below linear transforms of the vectors."""
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def restricts(index: Any) -> bool:
    """Whether searches of `index` can be restricted to members."""
    import faiss

    inner = _inside(faiss, index)
    if isinstance(inner, faiss.IndexIVFAdditiveQuantizer):
        # Its lists take no selection, unlike those of the others.
        return False
    return isinstance(inner, faiss.IndexFlat | faiss.IndexIVF | faiss.IndexScalarQuantizer)


def _check_enough(faiss: Any, index: Any, factory: str, total: int) -> None:
    if index.is_trained:
        return
    inner = _inside(faiss, index)
    coder = getattr(inner, "pq", None)
    centroids = max(getattr(inner, "nlist", 1), 1 if coder is None else coder.ksub)
    if "OPQ" in factory:
        # FAISS learns the rotation with a code of 8 bits, whatever the index itself has.
        centroids = max(centroids, 256)
    needed = POINTS_PER_CENTROID * centroids
    if total < needed:
        raise UserError(
            f"index.factory {factory} learns {centroids} centroids, which takes {needed} vectors, and there "
            f"are {total}",
            "set index.factory=Flat: it is exact, and fast enough for a set of this size",
        )
