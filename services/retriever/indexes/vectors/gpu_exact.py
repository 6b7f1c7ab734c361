"""Finds nearest vectors exactly on GPUs: half-precision vectors in their memory, scanned once per batch of queries."""

import gc
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from services.retriever.indexes.vectors.base import ExactSettings, Rows, Unservable, Vectors
from services.retriever.indexes.vectors.group_maxima import GROUP_ROWS, TILE_QUERIES, choose_scan
from services.retriever.ranking import RankedRows

_COPY_BYTES = 1 << 28
# The scan and the second scoring add up products in different orders, so near ties at the last place may change order.
_SPARE_GROUPS = 8
# Vectors of groups that are scored again at once, in float32.
_RESCORED_BYTES = 1 << 28
# What copying and searching take on a device besides the vectors: a block in float32 and rounded, the candidates of a
# step in both, and the maxima of 64 queries over 40 million rows.
_WORKING_BYTES = 1 << 30
# Half precision moves a score by about one part in a thousand: rows this far below the last place may belong above it.
_SPARE_ROWS = 32


class GpuExactIndex:
    """Exact inner product search over vectors in the memory of one or more devices, a range of rows on each.

    Scores are those of the half-precision vectors with the float32 query, or with ``rescore`` those of the float32
    vectors of the file for the best rows. Equal scores are in row order. Called by one thread at a time.
    """

    def __init__(self, vectors_ND: Vectors, settings: ExactSettings) -> None:
        """Copy the vectors to the devices.

        Raises:
            Unservable: a device is missing or too small, or a number does not fit into the dtype.
        """
        devices = list_devices(settings.device)
        self._file_ND = vectors_ND
        self._rescore = settings.rescore
        # whole groups, so that only the last device has one that is not full
        per_device = -(-len(vectors_ND) // len(devices) // GROUP_ROWS) * GROUP_ROWS
        starts = range(0, max(len(vectors_ND), 1), max(per_device, 1))
        dtype = getattr(torch, settings.dtype)
        self._shards = [
            _load_shard(vectors_ND[start : start + per_device], start, device, dtype)
            for start, device in zip(starts, devices, strict=False)
        ]
        self._threads = ThreadPoolExecutor(len(self._shards), thread_name_prefix="gpu-exact")

    @property
    def dimensions(self) -> int:
        return self._file_ND.shape[1]

    def __len__(self) -> int:
        return self._file_ND.shape[0]

    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[RankedRows]:
        """Up to ``top_k`` rows per query by inner product, of those in ``allowed``."""
        if not len(self):
            return [RankedRows([], []) for _ in queries_QD]
        wanted = top_k + _SPARE_ROWS if self._rescore else top_k
        best: list[RankedRows] = []
        for start in range(0, len(queries_QD), TILE_QUERIES):
            queries = queries_QD[start : start + TILE_QUERIES]
            search = partial(Shard.search, queries_QD=queries, top_k=wanted, allowed=allowed)
            found = zip(*self._threads.map(search, self._shards), strict=True)
            best += [self._merge(query, parts, top_k) for query, parts in zip(queries, found, strict=True)]
        return best

    def _merge(self, query_D: Vectors, parts: Sequence[tuple[Rows, Vectors]], top_k: int) -> RankedRows:
        rows = np.concatenate([rows for rows, _ in parts])
        scores = np.concatenate([scores for _, scores in parts])
        if self._rescore:
            scores = self._file_ND[rows] @ query_D
        order = np.lexsort((rows, -scores))[:top_k]
        return RankedRows(rows[order].tolist(), scores[order].tolist())


class Shard:
    """The vectors of a range of rows in the memory of one device."""

    def __init__(self, vectors_ND: Vectors, first_row: int, device: torch.device, dtype: torch.dtype) -> None:
        self._count, dimensions = vectors_ND.shape
        self._first_row = first_row
        self._device = device
        self._scan = choose_scan(device)
        padded = -(-self._count // GROUP_ROWS) * GROUP_ROWS
        vector_bytes = padded * dimensions * 2
        _check_memory(vector_bytes + padded + min(_WORKING_BYTES, 4 * vector_bytes), device)
        self._vectors_ND = torch.zeros(padded, dimensions, dtype=dtype, device=device)
        self._excluded_N = torch.zeros(padded, dtype=torch.bool, device=device)
        self._excluded_N[self._count :] = True
        for start, block_BD in _slice(vectors_ND):
            self._fill(start, torch.from_numpy(block_BD).to(device))
        self._has_excluded = bool(self._excluded_N.any())
        self._filter: tuple[Rows, Tensor] | None = None

    def _fill(self, start: int, block_BD: Tensor) -> None:
        # A vector with such numbers has no finite score, so it is never found; as zeros it harms no other one.
        broken_B = ~block_BD.isfinite().all(1)
        self._excluded_N[start : start + len(block_BD)] = broken_B
        block_BD[broken_B] = 0.0
        rounded_BD = block_BD.to(self._vectors_ND.dtype)
        if not rounded_BD.isfinite().all():
            raise Unservable(
                f"a vector has a number of {block_BD.abs().max().item():.3g}, which float16 cannot hold; set the "
                "dtype of exact search to bfloat16"
            )
        self._vectors_ND[start : start + len(block_BD)] = rounded_BD

    @torch.inference_mode()
    def search(self, queries_QD: Vectors, top_k: int, allowed: Rows | None) -> list[tuple[Rows, Vectors]]:
        """Rows and scores of the best ``top_k`` per query, best first."""
        queries = torch.from_numpy(np.ascontiguousarray(queries_QD, dtype=np.float32)).to(self._device)
        excluded_N = self._excluded(allowed)
        maxima_QG = self._scan(self._vectors_ND, queries, excluded_N)
        groups_QM = _best_groups(maxima_QG, top_k)
        per_query = groups_QM.shape[1] * GROUP_ROWS * self._vectors_ND.shape[1] * 4
        step = max(1, _RESCORED_BYTES // max(per_query, 1))
        found = []
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            found += self._score(queries[part], groups_QM[part], excluded_N, top_k)
        return found

    def _score(
        self, queries_QD: Tensor, groups_QM: Tensor, excluded_N: Tensor | None, top_k: int
    ) -> Iterable[tuple[Rows, Vectors]]:
        """Score the rows of the groups, which are in ascending order, so that a stable sort keeps ties in row order."""
        rows_QC = (groups_QM[:, :, None] * GROUP_ROWS + torch.arange(GROUP_ROWS, device=self._device)).flatten(1)
        scores_QC = torch.bmm(self._vectors_ND[rows_QC].float(), queries_QD[:, :, None]).squeeze(2)
        if excluded_N is not None:
            scores_QC.masked_fill_(excluded_N[rows_QC], -torch.inf)
        ordered = scores_QC.sort(dim=1, descending=True, stable=True)
        scores = ordered.values[:, :top_k].cpu().numpy()
        rows = rows_QC.gather(1, ordered.indices[:, :top_k]).cpu().numpy() + self._first_row
        for rows_K, scores_K in zip(rows, scores, strict=True):
            ranked_K = np.isfinite(scores_K)
            yield rows_K[ranked_K], scores_K[ranked_K]

    def _excluded(self, allowed: Rows | None) -> Tensor | None:
        """The rows that are not to be found; None: all are."""
        if allowed is None:
            return self._excluded_N if self._has_excluded else None
        if self._filter is None or self._filter[0] is not allowed:  # searches with one filter often follow each other
            here = allowed[(allowed >= self._first_row) & (allowed < self._first_row + self._count)] - self._first_row
            hidden_N = torch.ones_like(self._excluded_N)
            hidden_N[torch.from_numpy(here).to(self._device)] = False
            self._filter = allowed, hidden_N | self._excluded_N
        return self._filter[1]


def _best_groups(maxima_QG: Tensor, top_k: int) -> Tensor:
    """The groups that hold each query's best ``top_k`` rows with ties in row order, ascending. Shape: [Q, M]."""
    wanted = min(top_k + _SPARE_GROUPS, maxima_QG.shape[1])
    best = maxima_QG.topk(wanted, 1)
    groups_QM = best.indices
    # topk picks any of several equal maxima. That matters if those at the last wanted place reach up to place top_k.
    is_tied_Q = best.values[:, min(top_k, wanted) - 1] == best.values[:, -1]
    if wanted < maxima_QG.shape[1] and is_tied_Q.any():
        stable = maxima_QG[is_tied_Q].sort(dim=1, descending=True, stable=True)
        groups_QM[is_tied_Q] = stable.indices[:, :wanted]
    return groups_QM.sort(1).values


def _load_shard(vectors_ND: Vectors, first_row: int, device: torch.device, dtype: torch.dtype) -> Shard:
    try:
        return Shard(vectors_ND, first_row, device, dtype)
    except RuntimeError as error:  # torch's class for a device that failed, or whose memory another process took
        reason = str(error).partition("\n")[0]
        raise Unservable(f"exact search cannot load the vectors onto {device}: {reason}") from error


def list_devices(name: str) -> list[torch.device]:
    """The devices of a setting: ``cuda`` means all visible GPUs, and several are separated by commas.

    Raises:
        Unservable: one does not exist, or cannot be used.
    """
    parts = name.split(",")
    if name == "cuda":
        if not torch.cuda.is_available():
            raise Unservable("exact search is to run on cuda, but torch sees no GPU; set its device to cpu")
        parts = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = []
    for part in parts:
        try:
            device = torch.device(part.strip())
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            raise Unservable(f"exact search cannot use the device '{part.strip()}': {error}") from error
        devices.append(device)
    return devices


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        # torch keeps the memory of generations that were freed, and the device counts it as used until it is returned.
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise Unservable(
            f"the vectors and their searches need {needed / 2**30:.1f} GiB on {device}, which has "
            f"{free / 2**30:.1f} GiB free; use more GPUs, or a FAISS index that compresses vectors"
        )


def _slice(vectors_ND: Vectors) -> Iterable[tuple[int, Vectors]]:
    """Blocks of rows, copied out of the mapped file, with the number of their first row."""
    step = max(1, _COPY_BYTES // max(1, vectors_ND.shape[1] * 4))
    for start in range(0, len(vectors_ND), step):
        yield start, np.array(vectors_ND[start : start + step], dtype=np.float32)
