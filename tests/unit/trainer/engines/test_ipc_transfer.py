"""Weights that reach servers through memory which they share with the trainer."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchrl.errors import ConfigurationError, Unavailable
from services.trainer.engines.base import push_weights
from services.trainer.engines.vllm import ipc_transfer
from services.trainer.engines.vllm.ipc_transfer import ALIGNMENT, IpcTransfer, SharedBuffer, split_into_parts
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.learner.model_folder import fingerprint_tensors
from services.trainer.learner.reports import PublishedWeights
from tests.fakes.other_process import read_elsewhere
from tests.unit.trainer.engines.conftest import weights_of

CPU = torch.device("cpu")


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]), min_size=12, max_size=12),
)
def test_parts_hold_every_tensor_once_in_order_and_none_overlaps(sizes: list[int], dtypes: list[torch.dtype]) -> None:
    tensors = {f"t{n}": torch.zeros(size, dtype=dtypes[n]) for n, size in enumerate(sizes)}
    part_bytes = max(4 * ALIGNMENT, *(tensor.nbytes for tensor in tensors.values()))
    parts = split_into_parts(tensors, part_bytes)
    assert [name for part in parts for name in part["names"]] == list(tensors)
    for part in parts:
        ends = [at + tensors[name].nbytes for name, at in zip(part["names"], part["offsets"], strict=True)]
        assert all(at % ALIGNMENT == 0 for at in part["offsets"]) and max(ends, default=0) <= part_bytes
        assert all(end <= start for end, start in zip(ends, part["offsets"][1:], strict=False))
        assert part["shapes"] == [list(tensors[name].shape) for name in part["names"]]
    for before, after in pairwise(parts):  # as few as the order allows
        last, first = before["names"][-1], after["names"][0]
        assert before["offsets"][-1] + tensors[last].nbytes + tensors[first].nbytes > part_bytes - ALIGNMENT


def test_another_process_sees_what_the_trainer_writes_until_the_trainer_lets_go() -> None:
    buffer = SharedBuffer(1 << 12, CPU, workers=2)
    assert len(buffer.handles) == 2
    tensors = {"a": torch.tensor([1.5, -2.0]), "b": torch.tensor([7], dtype=torch.uint8)}
    (part,) = split_into_parts(tensors, 1 << 12)
    buffer.fill(tensors, part)
    device, content = read_elsewhere(buffer.handles[1])
    assert device == "cpu" and content[:8] == tensors["a"].view(torch.uint8).tolist() and content[ALIGNMENT] == 7
    path = Path(buffer.handles[0]["path"])
    assert path.exists()
    del buffer
    assert not path.exists()


async def test_servers_get_weights_in_parts_through_memory_of_their_own(
    started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ipc_transfer, "PART_BYTES", 1024)
    settings = {"weight_transfer": {"backend": "ipc", "device": "cpu"}, "server": {"dtype": "bfloat16"}}
    async with started(2, **settings) as setup:
        for version, weight in enumerate((2.0, 3.0), 1):
            small = weights_of(weight, version)
            tensors = {"large": torch.zeros(1500), **small.tensors, "last": torch.ones(400)}
            weights = PublishedWeights(version, fingerprint_tensors(tensors), tensors, small.probe)
            await push_weights(setup.engine, weights)
            assert [server.weight for server in setup.servers] == [weight, weight]
        # 3,000 bytes in bfloat16: the tensor that is larger than a part makes the parts larger
        assert setup.servers[0].parts[-2:] == [["large"], ["weight", "last"]]
        assert setup.pushes[-1].bytes == 2 * (1500 + 1 + 400)
        setup.servers[0].failing_updates = 1
        await push_weights(setup.engine, weights_of(4.0, 3))
        await until(lambda: setup.servers[0].weight == 4.0)
        assert setup.failed_pushes == 1
    assert not list(tmp_path.iterdir())


async def test_a_server_that_does_not_see_the_memory_is_refused_at_the_start(started) -> None:
    # as one in another container answers: it has no such process
    settings = {"weight_transfer": {"backend": "ipc", "device": "cpu"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ipc_transfer.os, "getpid", lambda: 2**22 + 1)
        with pytest.raises(ConfigurationError, match="cannot receive weights by trainer_ipc"):
            async with started(1, **settings):
                pass


def test_devices_and_servers_that_share_no_memory_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="with servers on CPUs, set it to cpu"):
        IpcTransfer("float32", "cuda:0")
    with pytest.raises(ConfigurationError, match="shares memory of cpu or of a GPU"):
        IpcTransfer("float32", "meta")
    with pytest.raises(ValueError, match="ipc needs servers on the trainer's machine"):
        VllmEngineSettings.model_validate({"placement": "ray", "weight_transfer": {"backend": "ipc"}})
    with pytest.raises(Unavailable, match="cannot be shared with a server"):
        SharedBuffer(1 << 62, CPU, workers=1)
