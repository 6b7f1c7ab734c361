"""A trace collector on loopback: OTLP over HTTP and over gRPC.

Requests arrive in the threads of two servers; one lock protects what they append and what the test reads.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class SeenSpan:
    """One span as received."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str]
    start: int
    end: int
    is_error: bool


@dataclass
class OtlpCollector:
    """Keeps the payloads and spans that it receives."""

    http: str = ""
    grpc: str = ""
    payloads: list[bytes] = field(default_factory=list)
    _spans: list[SeenSpan] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spans(self, trace_id: str = "") -> list[SeenSpan]:
        """Return all spans, or those of one trace."""
        with self._lock:
            return [span for span in self._spans if trace_id in ("", span.trace_id)]

    def receive(self, request: pb.ExportTraceServiceRequest) -> None:
        with self._lock:
            self.payloads.append(request.SerializeToString())
            for part in request.resource_spans:
                resource = {one.key: one.value.string_value for one in part.resource.attributes}
                for scope in part.scope_spans:
                    self._spans.extend(_seen(span, resource["service.name"]) for span in scope.spans)


def _seen(span: trace_pb2.Span, service: str) -> SeenSpan:
    values = {
        one.key: str(getattr(one.value, one.value.WhichOneof("value") or "string_value")) for one in span.attributes
    }
    kind = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
    return SeenSpan(
        service, span.name, kind, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), values,
        span.start_time_unix_nano, span.end_time_unix_nano, span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )  # fmt: skip


@contextmanager
def running_collector() -> Iterator[OtlpCollector]:
    """Listen on two ports chosen by the system until the block ends."""
    collector = OtlpCollector()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_known = self.path == "/v1/traces"
            if is_known:
                collector.receive(pb.ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if is_known else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    class Servicer(rpc.TraceServiceServicer):
        def Export(self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext):
            collector.receive(request)
            return pb.ExportTraceServiceResponse()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_TraceServiceServicer_to_server(Servicer(), server)
    collector.grpc = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    collector.http = f"http://127.0.0.1:{http.server_address[1]}"
    server.start()
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
        server.stop(None).wait()
