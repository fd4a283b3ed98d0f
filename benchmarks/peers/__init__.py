"""One file a family: benchmarks/peers/<family>.py defines `rows() -> Iterable[Row]`, variants interleaved in one process."""
