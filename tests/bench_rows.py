"""Saved runs of the benchmark with canned numbers."""

from __future__ import annotations

from bench.documents import FORMAT

ENVIRONMENT = {
    "seqkernels": "1.2.3",
    "commit": "0123456789ab",
    "isa": "avx2",
    "isas": ["scalar", "avx2"],
    "cpu": "Imaginary 9000",
    "cores": 2,
    "caches": {"L2": 8000},
    "torch": "2.13.0",
    "onednn": "3.12.0",
    "python": "3.11.7",
    "peers": {"onnxruntime": "1.0"},
}


def measured(*samples: float, **more) -> dict:
    """A provider's result whose median is the middle one of the samples."""
    ordered = sorted(samples)
    middle = ordered[len(ordered) // 2]
    return {
        "status": "measured",
        "error": 1e-7,
        "allowed": 2e-7,
        "farthest": "output",
        "memory": 2048,
        "median": middle,
        "deviation": sorted(abs(sample - middle) for sample in samples)[len(samples) // 2],
        "noise": 0.01,
        "calls": 1,
        "samples": list(samples),
        **more,
    }


def row(results: dict, hidden: int = 8, pass_name: str = "inference") -> dict:
    return {
        "operation": "lstm",
        "shape": {"N": 1, "T": 2, "H": hidden},
        "pass": pass_name,
        "dtype": "float32",
        "threads": 1,
        "device": "cpu",
        "precision": "highest",
        "cold": False,
        "flops": 1e6,
        "bytes": 1e4,
        "command": "seqkernels-bench run --op lstm",
        "results": results,
        "run": 0,
    }


def document(*rows: dict, measured: str = "2026-01-02") -> dict:
    run = {
        "measured": measured,
        "command": "python -m bench run",
        "environment": ENVIRONMENT,
        "method": {"max_noise": 0.02, "verified": True},
        "peaks": [PEAKS],
    }
    return {"format": FORMAT, "runs": [run], "rows": list(rows)}


PEAKS = {
    "threads": 1,
    "device": "cpu",
    "product": {"float32": 8e9},
    "peak": {"float32": 1e10},
    "bandwidth": {"L2": 4e9, "memory": 1e9},
}
