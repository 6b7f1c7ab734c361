"""Random calls of every rpc of the four services: messages of any content, and bytes that are no message.

``make fuzz-grpc`` makes thousands; FUZZ_EXAMPLES is how many each rpc gets.
"""

import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.small_services import ADMIN_KEY, Running, small_services
from tests.fuzz.messages import messages

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
SECONDS = 3.0
"""A call that is not done by then is left: watching a run, say."""
SERVICES = ("retriever", "generator", "evaluator", "trainer")
ENDS_THE_PROCESS = "Stop"
FAULTS_OF_THE_SERVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}

METHODS: dict[str, MethodDescriptor] = {
    f"{service}.{method.name}": method
    for service in SERVICES
    for method in importlib.import_module(f"searchrl.contracts.v1.{service}_pb2")
    .DESCRIPTOR.services_by_name[service.capitalize()]
    .methods
    if method.name != ENDS_THE_PROCESS
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with small_services(tmp_path_factory.mktemp("services")) as started:
        channels.clear()
        by_status.clear()
        yield started
        sys.stdout.write(f"\n{by_status.total()} calls, by status {dict(by_status)}\n")
        for channel in channels.values():
            channel.close()
        channels.clear()


channels: dict[str, grpc.Channel] = {}
by_status = Counter[str]()


def call(target: str, method: MethodDescriptor, content: bytes) -> tuple[grpc.StatusCode, str]:
    """The status of one call with these bytes as its request, and what is said about it."""
    channel = channels.setdefault(target, grpc.insecure_channel(target))
    service = method.containing_service.full_name
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    ask = kind(f"/{service}/{method.name}")
    try:
        answer = ask(content, timeout=SECONDS, metadata=(("authorization", f"Bearer {ADMIN_KEY}"),))
        if method.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("name", METHODS)
def test_no_message_makes_a_service_fail(name: str, running: Running) -> None:
    method = METHODS[name]
    target = running.targets[name.partition(".")[0]].grpc_target
    kind = GetMessageClass(method.input_type)
    known = (running.generation, str(running.files.test), str(running.files.corpus))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(messages(kind, known) | st.binary(max_size=200))
    def ask(sent: Message | bytes) -> None:
        content = sent if isinstance(sent, bytes) else sent.SerializeToString()
        status, details = call(target, method, content)
        by_status[status.name] += 1
        assert status not in FAULTS_OF_THE_SERVER, f"{status} {details}"

    ask()


@pytest.mark.parametrize("name", METHODS)
def test_bytes_that_are_no_message_are_the_callers_fault(name: str, running: Running) -> None:
    status, details = call(running.targets[name.partition(".")[0]].grpc_target, METHODS[name], b"\xff\xff\xff")
    assert (status, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the request cannot be decoded as a message of this call",
    )
