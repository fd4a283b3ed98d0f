"""One folder a family, one file a published system: benchmarks/claims/<family>/<key>.py.

A file states its rule for `holds` in its docstring, before its first run, and defines

    def run(seed: int) -> Claim: ...

which takes at most 180 seconds on two cores and measures baseline, method and control at equal budget.
"""
