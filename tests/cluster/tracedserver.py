"""`cellblock` in a program that writes its spans to the file TRACES: ``python -m tests.cluster.tracedserver``."""

from __future__ import annotations

import os
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from orchestrator.cli.entry import main

if __name__ == "__main__":
    with Path(os.environ["TRACES"]).open("a", buffering=1) as file:
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: f"{span.to_json(indent=None)}\n")
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        main()
