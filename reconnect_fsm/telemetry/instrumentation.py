"""OpenTelemetry. It is imported only when `instrument` is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from reconnect_fsm._asyncio.connection import Connection
from reconnect_fsm.telemetry.events import observe
from reconnect_fsm.telemetry.metrics import Attributes, attributes_of

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["instrument"]


def instrument(
    client: Connection,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    attributes: Attributes | None = None,
    room_ids: bool = False,
) -> Callable[[], None]:
    """Export the measurements of a `Connection` or `Client` to OpenTelemetry. Returns a function that ends it.

    Call it before the client is started, with nothing more where the program sets up its providers globally. With the
    SDK's exporters that keep all in memory::

        >>> from opentelemetry.sdk.metrics import MeterProvider
        >>> from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        >>> from opentelemetry.sdk.trace import TracerProvider
        >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        >>> from reconnect_fsm import Connection
        >>> from reconnect_fsm.testing.embedded_server import EmbeddedServer
        >>> from reconnect_fsm.telemetry import instrument

        >>> spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
        >>> tracer_provider, meter_provider = TracerProvider(), MeterProvider([reader])
        >>> tracer_provider.add_span_processor(SimpleSpanProcessor(spans))

        >>> async def main() -> None:
        ...     async with EmbeddedServer() as server:
        ...         connection = Connection(f"{server.url}?token=secret")
        ...         instrument(connection, tracer_provider=tracer_provider, meter_provider=meter_provider)
        ...         async with connection:
        ...             await connection.wait_connected()

        >>> asyncio.run(main())
        >>> [span.name for span in spans.get_finished_spans()]
        ['reconnect_fsm.attempt', 'reconnect_fsm.connect']

    **Spans.** One trace for each connection. Its root is ``reconnect_fsm.connect``, or ``reconnect_fsm.reconnect``
    after a loss: from when the client began to connect until it was connected, or stopped. Its children are one
    ``reconnect_fsm.attempt`` for each dial, and one ``reconnect_fsm.join`` for each room that was joined over the
    connection. The time *of* the connection is no span, for it may last for weeks, and a span is seen only
    when it ends; it is a histogram, and an event of the next root. Roots are roots: a span of yours that is current
    somewhere does not become their parent.

    **Metrics.** See `INSTRUMENTS` in ``reconnect_fsm.telemetry.metrics``. For metrics alone pass
    ``tracer_provider=opentelemetry.trace.NoOpTracerProvider()``; what part of the traces is kept, your sampler decides.

    Parameters:
        tracer_provider: where the spans go; None: the global one.
        meter_provider: where the metrics go; None: the global one.
        attributes: are added to every span and metric, such as a name for this client, or ``server.address`` where the
            URL is a function. Each should have few values.
        room_ids: whether spans of joins hold the room's id, as ``reconnect_fsm.room_id``, and a refusal in the server's
            words, which may hold it. It may name a person or a document, so they do not unless asked to. No metric ever
            does.

    Raises ImportError, and says what to install, if OpenTelemetry's API is missing.
    """
    try:
        from reconnect_fsm.telemetry.otel import Exporter
    except ImportError as error:
        raise ImportError(
            "instrument() hands measurements to OpenTelemetry, whose API is not installed: "
            "pip install 'reconnect-fsm[opentelemetry]'. To measure without it, use reconnect_fsm.telemetry.Metrics"
        ) from error
    known = attributes_of(client) | dict(attributes or {})
    return observe(client, Exporter(tracer_provider, meter_provider, known, room_ids).export)
